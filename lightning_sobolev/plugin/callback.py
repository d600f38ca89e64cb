"""Sobolev terms for any LightningModule, by a callback."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from lightning_sobolev._checks import require
from lightning_sobolev._types import Teacher
from lightning_sobolev.doctor import Cost, Doctor, Foresight, LabelReport
from lightning_sobolev.doctor.outlook import OnMislead, Outlook, say
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.loss.compiling import CompileSettings
from lightning_sobolev.loss.loss import Occasion, SobolevLoss
from lightning_sobolev.loss.report import Report
from lightning_sobolev.observe.decide import ManualCalls
from lightning_sobolev.observe.options import ObserveOptions, WhichCall, Wrt
from lightning_sobolev.observe.recorder import Observed, Recorder
from lightning_sobolev.plugin import step
from lightning_sobolev.plugin.report import Reporter
from lightning_sobolev.plugin.resolve import (
    Options,
    Plan,
    ahead_of_finders,
    check_strategy,
    resolve,
)
from lightning_sobolev.schedules import Schedule
from lightning_sobolev.spec import SobolevSpec
from lightning_sobolev.teachers import (
    AnalyticTeacher,
    BatchTeacher,
    DirectionalTeacher,
    NetworkTeacher,
)


class SobolevCallback(Callback):
    r"""Adds derivative matching to the loss of any LightningModule while it is fitted.

    The module's own ``training_step`` runs unchanged; its call of the student is observed, the
    teacher is asked for the same projected derivatives at the same inputs, and

    .. math:: \sum_j w_j\,\text{term}_j

    is added to the loss it returned (or, under manual optimization, to the losses it hands to
    ``manual_backward``). Logged are ``train/sobolev/{term}`` and ``train/sobolev/total``.

    Under manual optimization every observed call is decided on once, at the first
    ``manual_backward`` whose loss depends on it: ``call="first"`` takes the first of each (every
    micro-batch, both passes of SAM), ``"all"`` all, an index counts the calls of the whole step. A
    chosen call that no ``manual_backward`` reaches is an error.

    Cost: for one order-1 projection about 2 to 3 times a plain step. Assumes that row b of the
    student's output depends on row b of its input alone, or, with ``groups``, on the rows of
    its group.

    Args:
        teacher: Answers with value and derivatives; a module is wrapped in a
            :class:`~lightning_sobolev.teachers.NetworkTeacher`.
        spec: What is matched; None: what the teacher can give, in general one projection of the
            Jacobian with weight 1.
        weight: Weight of what is matched where there is no ``spec``.
        module: Name of the submodule that maps the input to the matched output. None: the module
            itself or, if the step never calls that, the one child that it calls.
        wrt, call, groups, engine, batch_norm, output, row_axes, inner_precision, missing: What is
            observed of a step, as :class:`~lightning_sobolev.observe.ObserveOptions` says. Steps
            that ``missing="skip"`` lets pass are counted in ``train/sobolev/missing_steps``.
        seed: Seed of the projections; ranks differ, resumed runs continue.
        doctor: Whether to check, before the first update, that the terms' parameter gradient agrees
            with finite differences on this very student, and to measure ``cost`` behind it.
        non_finite: ``"raise"`` refuses a teacher's answer with NaN or Inf; ``"skip"`` leaves such
            rows out of the term, counts them in the log, and says so once.
        on_mislead: What follows where the data themselves say, after the first pass over their
            points, that derivatives there raise the error of the values (``foresight``,
            docs/foresight.md): a warning, or ``"drop"``: all terms have weight zero for the rest of
            the fit. ``"off"`` does not look.
        validate: Whether to log ``val/sobolev/{term}`` and the derivatives' cosine in validation
            and test as well.
        manual_scale: What multiplies the terms under manual optimization: 1/N for a step that hands
            ``loss / N`` of N micro-batches to ``manual_backward``.
        at_once: How many of a term's projections one backward pass carries, as
            :class:`~lightning_sobolev.SobolevLoss` says; None measures on the first step.
        labels: What follows where stored derivatives (:class:`BatchTeacher`) do not look like those
            of the stored values, after the first batches: a warning, an error, or ``"off"``, which
            does not look; ``label_report`` is what was found (docs/labels-doctor.md).
        compile: Compiles the student's call together with derivatives and terms (``engine="func"``,
            which it implies); settings instead of True say how. None: with ``engine="func"``, if
            the module is compiled.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Czarnecki et al. 2017, Sobolev Training for Neural Networks (arXiv:1706.04859): objective
        with stochastic projections.
    """

    def __init__(
        self,
        # By name beside their protocol: LightningCLI takes no class for one that has attributes.
        teacher: Teacher
        | NetworkTeacher
        | BatchTeacher
        | DirectionalTeacher
        | AnalyticTeacher
        | nn.Module,
        spec: SobolevSpec | None = None,
        *,
        weight: float | Schedule | None = None,
        module: str | None = None,
        wrt: Wrt = None,
        call: WhichCall = "first",
        groups: str | int | None = None,
        engine: Literal["auto", "tape", "func"] = "auto",
        batch_norm: Literal["train", "eval"] = "train",
        output: str | int | None = None,
        row_axes: Mapping[str | int, int | None] | None = None,
        inner_precision: InnerPrecision = "float32",
        seed: int = 0,
        doctor: bool = True,
        non_finite: Literal["raise", "skip"] = "raise",
        missing: Literal["raise", "skip"] = "raise",
        on_mislead: OnMislead = "warn",
        validate: bool = False,
        manual_scale: float = 1.0,
        at_once: int | None = None,
        compile: CompileSettings | bool | None = None,
        labels: Literal["warn", "raise", "off"] = "warn",
    ) -> None:
        super().__init__()
        self.plan = cast(Plan, None)  # there while a fit runs
        self.report: Report | None = None
        self.cost: Cost | None = None
        self.foresight: Foresight | None = None
        self.label_report: LabelReport | None = None
        observe = ObserveOptions(
            wrt=wrt, output=output, call=call, groups=groups, engine=engine, batch_norm=batch_norm,
            row_axes=row_axes, inner_precision=inner_precision, missing=missing,
        )  # fmt: skip
        self.options = Options(
            module=module, observe=observe, doctor=doctor, validate=validate,
            manual_scale=manual_scale, compile=compile, on_mislead=on_mislead, labels=labels,
        )  # fmt: skip
        if spec is not None and not isinstance(spec, SobolevSpec):
            raise ValueError(f"spec must be a SobolevSpec, got {type(spec).__name__}")
        require(weight is None or spec is None, "weight", "None beside spec=", weight)
        self.loss = SobolevLoss(teacher, spec, seed=seed, non_finite=non_finite, at_once=at_once)
        if weight is not None:
            self._rebuild(
                teacher,
                replace(self.spec, terms=[replace(t, weight=weight) for t in self.spec.terms]),
            )
        self._name_state()
        self._doctor = Doctor()
        self._is_loaded = self._is_described = self._is_scale_said = False
        self._number = self._batch_number = self._evaluations = 0
        self._mark: tuple[Any, ...] | None = None

    @property
    def teacher(self) -> Teacher:
        """Who answers; may be set between fits."""
        return self.loss.teacher

    @teacher.setter
    def teacher(self, teacher: Teacher | nn.Module) -> None:
        self._rebuild(teacher, self.loss.spec)

    @property
    def spec(self) -> SobolevSpec:
        """What is matched; may be set between fits."""
        return self.loss.spec

    @spec.setter
    def spec(self, spec: SobolevSpec) -> None:
        self._rebuild(self.loss.teacher, spec)

    def _rebuild(self, teacher: Teacher | nn.Module, spec: SobolevSpec) -> None:
        require(self.plan is None, "teacher and spec", "set between fits", "an assignment in one")
        old = self.loss
        how: Any = {"non_finite": old.non_finite, "at_once": old.at_once.wish}
        self.loss = SobolevLoss(teacher, spec, seed=old.seed, **how)
        self._name_state()

    def _name_state(self) -> None:
        # An attribute in the place of the base class's property: it is asked for five times a step.
        # Several callbacks on one student differ in their terms.
        place = {"module": self.options.module, "wrt": self.options.observe.wrt}
        names = [term.key for term in self.spec.terms]
        self.state_key = self._generate_state_key(**place, terms=names)

    state_key: str = ""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer)
            ahead_of_finders(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_loaded:  # not in setup, where configure_model has built nothing yet
            self.loss.reset()
            self.foresight = None
        self.loss.is_dropped &= self.options.on_mislead == "drop"
        recorder = self._enter(trainer, pl_module)
        recorder.snapshots = self.options.doctor  # on the first step
        self._doctor = Doctor()
        self._watch(trainer)
        name = self.options.module
        student = pl_module if name is None else pl_module.get_submodule(name)
        self._doctor.scan(student, self.loss, recorder)
        is_watching = self.options.labels != "off" and not getattr(trainer, "fast_dev_run", False)
        if is_watching and trainer.is_global_zero:
            self._doctor.watch_labels(self.loss)
        step.install(pl_module, trainer, self)

    def _watch(self, trainer: Trainer) -> None:
        is_asked = self.options.on_mislead != "off" and not getattr(trainer, "fast_dev_run", False)
        if is_asked and self.foresight is None:  # a resumed fit was told
            self._doctor.outlook = Outlook(self.loss, trainer.world_size)

    def _enter(self, trainer: Trainer, module: LightningModule) -> Recorder:
        for network in self.loss.teacher.networks:  # the trainer moves no callback
            network.to(module.device)
        plan = resolve(trainer, module, self.options, self.loss)
        self.loss.begin()
        self.loss.forgives_overflow = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._reporter = Reporter(self.loss, module)
        self._module, self._trainer, self._is_described = module, trainer, False
        self.plan, self._batch_number, self._at = plan, -1, partial(getattr, trainer, "global_step")
        for name in _IDLE:  # not overridden: Lightning passes over what cannot be called
            if getattr(type(self), name) is getattr(Callback, name):
                vars(self)[name] = None
        return plan.recorder

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.plan is None and self.options.validate:
            self._enter(trainer, pl_module)
            step.install(pl_module, trainer, self)

    on_test_start = on_validation_start

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._foresee(at_epoch=False)
        self.loss.checks.flush()
        if self._doctor.labels is not None:
            self._examine_labels()

    def _examine_labels(self) -> None:
        self.label_report = self._doctor.examine_labels(self.loss, self.options.labels)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._doctor.outlook is not None:
            self._doctor.outlook.begin_epoch()
        self._foresee(at_epoch=True)

    def _foresee(self, at_epoch: bool) -> None:
        # Several processes meet between two epochs, one sees before each step what it knows.
        outlook, on_mislead = self._doctor.outlook, self.options.on_mislead
        if outlook is None or (outlook.processes > 1) != at_epoch:
            return
        verdict = self._doctor.foresee()
        if verdict is None:
            return
        self.foresight = verdict.foresight
        self.loss.is_dropped = verdict.is_bad and on_mislead == "drop"
        if self._doctor.labels is not None:
            self._examine_labels()
        # Wrong labels mislead, too; what is wrong with them was said.
        is_said = self.label_report is not None and self.label_report.is_fault
        if self.loss.is_dropped or not (verdict.is_bad and is_said):
            say(verdict, on_mislead)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._doctor.kept is not None:
            self.cost = self._doctor.measure_cost(
                self.loss, trainer.precision_plugin.train_step_context
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Lightning does not call teardown after a crash. What is saved now shall not count the step
        # that the exception broke off.
        if self._is_under_way(trainer) and self._mark is not None:
            self.loss.go_back(self._mark)
        self.loss.checks.forget()
        self._leave(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        under_way = self.plan is not None and self._is_under_way(self._trainer)
        if not under_way or self._mark is None:
            return self._state()
        now = self.loss.mark()  # a step under way (Slurm) is repeated
        self.loss.go_back(self._mark)
        state = self._state()
        self.loss.go_back(now)
        return state

    def _state(self) -> dict[str, Any]:
        found = {} if self.foresight is None else {"foresight": asdict(self.foresight)}
        return self.loss.state_dict() | found

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_loaded, self._batch_number = True, -1
        self.loss.load_state_dict(state_dict)
        found = state_dict.get("foresight")
        self.foresight = None if found is None else Foresight(**found)
        if self.plan is not None and self._doctor.outlook is None:  # behind a search for a rate
            self._watch(self._trainer)

    def begin(self, batch: Any) -> None:
        """Begin a training step; called by the shadowed step."""
        loss, plan = self.loss, self.plan
        if loss.checks.waiting:
            loss.checks.flush()
        progress = self._trainer.fit_loop.epoch_loop.batch_progress
        number, outlook = progress.total.ready, self._doctor.outlook
        if self._batch_number != number:
            if outlook is not None:  # not within a line search
                if outlook.is_fresh and progress.current.ready > 1:
                    outlook.wait()
                self._foresee(at_epoch=False)
            self._batch_number, self._evaluations, self._mark = number, 0, loss.mark()
        elif self._mark is not None:  # a line search evaluates one function
            loss.go_back(self._mark)
        self._evaluations += 1
        self._occasion = Occasion(loss.counter, self._at, batch, parameters=self._module.parameters)
        loss.counter += 1
        if not self._module.automatic_optimization:
            self._manual = ManualCalls(plan.recorder)
        if plan.recorder.engine == "func":
            plan.recorder.push = loss.push(self._occasion)
        if plan.compiler is not None:
            plan.compiler.begin(self._occasion)
        plan.recorder.batch = batch
        plan.recorder.start()

    def _is_under_way(self, trainer: Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        begun: bool = self._batch_number == progress.total.ready
        return begun and bool(progress.current.ready > progress.current.processed)

    def terms(self, observed: list[Observed], value_loss: Tensor) -> Report:
        """Return the terms at observed calls, told of."""
        self._occasion.value_loss = value_loss
        try:
            report = self.report = self.loss.evaluate(observed, self._occasion)
        except FloatingPointError as error:
            if self._evaluations > 1:  # no line search comes back from NaN: torch's goes on
                error.add_note(
                    f"It was evaluation {self._evaluations} of the optimizer's closure (a line "
                    "search that went too far? take a smaller lr)"
                )
            raise
        finally:
            self._occasion.value_loss = None  # its graph ends with the step
        if self._doctor.labels is not None and self._doctor.labels.is_full:
            self._examine_labels()
        if not self._is_described:
            self._describe(observed[0])
        if self.loss.at_once.news:
            rank_zero_info(f"Sobolev: {'; '.join(self.loss.at_once.news)}")
            self.loss.at_once.news.clear()
        if report.has_more or self._reporter.balanced:
            self._reporter.tell(report)
        return report

    def _describe(self, seen: Observed) -> None:
        self._is_described = True
        recorder, teacher = self.plan.recorder, type(self.loss.teacher).__name__
        rank_zero_info(f"Sobolev: {recorder.describe(seen)}, teacher {teacher}")
        recorder.snapshots = False
        if self.options.doctor:
            self._doctor.examine(seen, self.loss, self._occasion)

    def automatic_terms(self, value_loss: Tensor) -> Report | None:
        """Return the terms of a step under automatic optimization; None where it has no call."""
        observed = self.plan.recorder.chosen()
        if self.options.observe.missing == "skip":
            self._reporter.count_missing(not observed)
        return self.terms(observed, value_loss) if observed else None

    def manual_terms(self, value_loss: Tensor) -> Report | None:
        """Return the terms that belong into a loss under manual optimization."""
        observed = self._manual.take(value_loss)
        if not observed:
            return None
        self._occasion.offset = self._manual.taken - 1  # every call has draws of its own
        if self._manual.taken == 2 and not self._is_scale_said:
            self._is_scale_said = True
            if self.options.manual_scale == 1.0:
                rank_zero_info(_SCALE)
        return self.terms(observed, value_loss)

    def end_manual(self) -> None:
        """Refuse a manual step of which a chosen call has no term."""
        has_call = self._manual.check()
        if self.options.observe.missing == "skip":
            self._reporter.count_missing(not has_call)

    def end_backward(self, loss: Tensor, leaves: list[Tensor]) -> None:
        """Refuse NaN in the gradients of a finite loss, before an optimizer takes them in."""
        if self.report is not None and self.report.terms:
            self.loss.end(self.report, loss, leaves, self._module)

    def validate(self, stage: str, batch: Any, number: int) -> None:
        """Log the terms and cosines at what a step of validation or test called."""
        observed = self.plan.recorder.chosen()
        if observed:
            occasion = Occasion(number, self._at, batch, trains=False)
            self._reporter.tell_validation(stage, self.loss.validate(observed, occasion))

    def _leave(self, module: LightningModule) -> None:
        step.uninstall(module, self)
        self._doctor.forget(self.loss)
        self._is_loaded, self.plan = False, cast(Plan, None)
        # A callback is copied and pickled between fits: without its trainer and module.
        for name in ("_trainer", "_module", "_reporter", "_occasion", "_manual", "_at", *_IDLE):
            vars(self).pop(name, None)
        if self.report is not None:
            self.report.let_go()


# Each hook of a callback that does nothing takes half a percent of a small network's step.
_IDLE = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
_SCALE = (
    "Sobolev: each manual_backward of this step has its terms with their full weight; where losses "
    "are divided by N, say manual_scale=1/N"
)
