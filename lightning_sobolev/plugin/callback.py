"""Sobolev terms for any LightningModule, by a callback."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from typing_extensions import override

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Teacher
from lightning_sobolev.doctor import Cost, Doctor
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.loss.compiling import CompileSettings
from lightning_sobolev.loss.loss import Occasion, SobolevLoss
from lightning_sobolev.loss.report import Report
from lightning_sobolev.observe.options import ObserveOptions, WhichCall, Wrt
from lightning_sobolev.observe.recorder import Observed
from lightning_sobolev.plugin import step
from lightning_sobolev.plugin.report import Reporter, log_key
from lightning_sobolev.plugin.resolve import Options, Plan, ahead_of_finders, check_strategy, resolve
from lightning_sobolev.schedules import Schedule
from lightning_sobolev.spec import SobolevSpec, SobolevTerm
from lightning_sobolev.teachers import AnalyticTeacher, BatchTeacher, NetworkTeacher


class SobolevCallback(Callback):
    r"""Adds derivative matching to the loss of any LightningModule while it is fitted.

    The module's own ``training_step`` runs unchanged; its call of the student is observed, the
    teacher is asked for the same projected derivatives at the same inputs, and

    .. math:: \sum_j w_j\,\text{term}_j

    is added to the loss it returned (or, under manual optimization, to the losses it hands to
    ``manual_backward``). Logged are ``train/sobolev/{term}`` and ``train/sobolev/total``.

    Under manual optimization every observed call is decided on once, at the first
    ``manual_backward`` whose loss depends on it: ``call="first"`` takes the first call of each, so
    that every micro-batch and both passes of SAM have their term; ``"all"`` takes all; an index
    counts the calls of the whole step. A chosen call that no ``manual_backward`` reaches is an
    error.

    Cost: for one order-1 projection about 2 to 3 times a plain step. Assumes that row b of the
    student's output depends on row b of its input alone.

    Args:
        teacher: Answers with value and derivatives; a module is wrapped in a
            :class:`~lightning_sobolev.teachers.NetworkTeacher`.
        spec: What is matched; None: what the teacher can give, in general one projection of the
            Jacobian with weight 1.
        weight: Weight of that one term where there is no ``spec``.
        module: Name of the submodule that maps the input to the matched output. None: the module
            itself or, if the step never calls that, the one child that it calls.
        wrt: The input: position, argument name or key path; None for the first float tensor that
            has an axis. A list of several joins their rows into one input.
        call: Which call of the student counts in a step that makes several: ``"first"``,
            ``"all"`` (averaged) or an index.
        engine: ``"tape"`` reuses the step's own forward; ``"func"`` runs it inside
            ``torch.func``; ``"auto"`` takes the tape and says so once.
        batch_norm: ``"train"`` observes the step's forward as it is; ``"eval"`` takes the
            derivatives in a replay with batch norms in eval mode, where rows are independent.
        output: Key path of the matched tensor in the student's output; None for the first with as
            many rows as the input.
        row_axes: Axis of the rows in other arguments, for terms on a part of the rows; see
            :class:`~lightning_sobolev.observe.ObserveOptions`.
        inner_precision: In which precision the student's derivatives are taken: at least
            ``"float32"`` (a step in half precision is replayed for it), that of the ``"step"``, or
            ``"bf16-mixed"``.
        seed: Seed of the projections; ranks differ, resumed runs continue.
        doctor: Whether to check, before the first update, that the terms' parameter gradient agrees
            with finite differences on this very student, and to measure ``cost`` behind it.
        non_finite: ``"raise"`` refuses a teacher's answer with NaN or Inf; ``"skip"`` leaves such
            rows out of the term, counts them in the log, and says so once.
        missing: ``"raise"`` refuses a step that does not call the student; ``"skip"`` trains it
            without the terms and counts it in ``train/sobolev/missing_steps``.
        validate: Whether to log ``val/sobolev/{term}`` and the derivatives' cosine in validation
            and test as well.
        manual_scale: What multiplies the terms under manual optimization: 1/N for a step that hands
            ``loss / N`` of N micro-batches to ``manual_backward``.
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
        teacher: Teacher | NetworkTeacher | BatchTeacher | AnalyticTeacher | nn.Module,
        spec: SobolevSpec | None = None,
        *,
        weight: float | Schedule | None = None,
        module: str | None = None,
        wrt: Wrt = None,
        call: WhichCall = "first",
        engine: Literal["auto", "tape", "func"] = "auto",
        batch_norm: Literal["train", "eval"] = "train",
        output: str | int | None = None,
        row_axes: Mapping[str | int, int | None] | None = None,
        inner_precision: InnerPrecision = "float32",
        seed: int = 0,
        doctor: bool = True,
        non_finite: Literal["raise", "skip"] = "raise",
        missing: Literal["raise", "skip"] = "raise",
        validate: bool = False,
        manual_scale: float = 1.0,
        compile: CompileSettings | bool | None = None,
    ) -> None:
        super().__init__()
        observe = ObserveOptions(
            wrt=wrt, output=output, call=call, engine=engine, batch_norm=batch_norm,
            row_axes=row_axes, inner_precision=inner_precision, missing=missing,
        )  # fmt: skip
        self.options = Options(
            module=module, observe=observe, doctor=doctor, validate=validate,
            manual_scale=manual_scale, compile=compile,
        )  # fmt: skip
        if spec is not None and not isinstance(spec, SobolevSpec):
            raise ValueError(f"spec must be a SobolevSpec, got {type(spec).__name__}")
        require(weight is None or spec is None, "weight", "None beside spec=", weight)
        self.loss = SobolevLoss(teacher, spec, seed=seed, non_finite=non_finite)
        if weight is not None:
            self.loss = SobolevLoss(
                self.loss.teacher, _weighted(self.loss.spec, weight), seed=seed, non_finite=non_finite
            )
        self.report: Report | None = None
        self.cost: Cost | None = None
        self._doctor = Doctor()
        self._plan: Plan | None = None
        self._trainer: Trainer | None = None
        self._is_loaded = False
        self._batch: Any = None
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
        require(self._plan is None, "teacher and spec", "set between fits", "an assignment in one")
        old = self.loss
        self.loss = SobolevLoss(teacher, spec, seed=old.seed, non_finite=old.non_finite)

    @property
    def plan(self) -> Plan:
        """What holds for the present fit."""
        assert self._plan is not None
        return self._plan

    @property
    @override
    def state_key(self) -> str:
        names = self.loss.term_keys
        return self._generate_state_key(
            module=self.options.module, wrt=self.options.observe.wrt, terms=names
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer)
            ahead_of_finders(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in setup, where ``configure_model`` has built nothing yet.
        if not self._is_loaded:
            self.loss.reset()
        self._enter(trainer, pl_module)
        recorder, name = self.plan.recorder, self.options.module
        recorder.snapshots = self.options.doctor  # on the first step
        self._doctor = Doctor()
        student = pl_module if name is None else pl_module.get_submodule(name)
        self._doctor.scan(student, self.loss, recorder)
        step.install(pl_module, trainer, self)

    def _enter(self, trainer: Trainer, module: LightningModule) -> None:
        loss = self.loss
        if isinstance(loss.teacher, NetworkTeacher):
            loss.teacher.to(module.device)  # the trainer moves no callback
        self._trainer = trainer
        self._plan = resolve(trainer, module, self.options, loss)
        loss.begin()
        loss.forgives_overflow = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._reporter = Reporter(loss)
        self._module, self._is_described = module, False

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._plan is None and self.options.validate:
            self._enter(trainer, pl_module)
            step.install(pl_module, trainer, self)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.loss.checks.flush()
        self._begin_batch()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loss.checks.flush()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._plan is not None and self._doctor.is_waiting:
            context = trainer.precision_plugin.train_step_context
            self.cost = self._doctor.measure_cost(self.loss, context)

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
        under_way = self._trainer is not None and self._is_under_way(self._trainer)
        if not under_way or self._mark is None:
            return self.loss.state_dict()
        now = self.loss.mark()  # a step under way (Slurm) is repeated
        self.loss.go_back(self._mark)
        state = self.loss.state_dict()
        self.loss.go_back(now)
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_loaded = True
        self.loss.load_state_dict(state_dict)

    def begin(self, batch: Any) -> None:
        """Begin a training step; called by the shadowed step."""
        assert self._trainer is not None
        # Searches for a learning rate take steps without the hooks of other callbacks.
        if self._batch_number != self._trainer.fit_loop.epoch_loop.batch_progress.total.ready:
            self._begin_batch()
        if self._evaluations and self._mark is not None:  # a line search evaluates one function
            self.loss.go_back(self._mark)
        self._evaluations += 1
        self._batch, self._number = batch, self.loss.counter
        self.loss.counter += 1
        self._decided: set[int] = set()
        self._gave = 0
        recorder = self.plan.recorder
        if recorder.engine == "func":
            recorder.push = self.loss.push(self._number, batch)
        if self.plan.compiler is not None:
            self.plan.compiler.begin(self._occasion(None))
        recorder.start()

    def _begin_batch(self) -> None:
        assert self._trainer is not None
        self._batch_number = self._trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._evaluations, self._mark = 0, self.loss.mark()

    def end(self) -> None:
        """End a training step, whatever came of it."""
        self._batch = None
        self.plan.recorder.stop()

    def _is_under_way(self, trainer: Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        begun: bool = self._batch_number == progress.total.ready
        return begun and bool(progress.current.ready > progress.current.processed)

    def _occasion(self, value_loss: Tensor | None) -> Occasion:
        assert self._trainer is not None
        parameters: Callable[[], Any] = self._module.parameters
        offset = 0 if self._module.automatic_optimization else self._gave - 1
        return Occasion(
            self._number, self._trainer.global_step, self._batch, value_loss, max(offset, 0),
            parameters,
        )  # fmt: skip

    def terms(self, observed: list[Observed], value_loss: Tensor) -> Report | None:
        """Return the terms at observed calls; None where there is no call."""
        module = self._module
        if not observed:
            self._count_missing(1.0)
            return None
        self.plan.recorder.stop()  # what the loss and the doctor call is nobody's step
        try:
            report = self.loss.evaluate(observed, self._occasion(value_loss))
        except FloatingPointError as error:
            if self._evaluations > 1:  # no line search comes back from NaN: torch's goes on
                error.add_note(
                    f"It was evaluation {self._evaluations} of the optimizer's closure (a line "
                    "search that went too far? take a smaller lr)"
                )
            raise
        self.report = report
        if not self._is_described:
            self._describe(observed[0])
        self._reporter.tell(module, report)
        if self.options.observe.missing == "skip":
            self._count_missing(0.0)
        return report

    def _count_missing(self, number: float) -> None:
        name = log_key("train", "missing_steps")
        self._module.log(name, number, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)

    def _describe(self, seen: Observed) -> None:
        self._is_described = True
        recorder, teacher = self.plan.recorder, type(self.loss.teacher).__name__
        rank_zero_info(f"Sobolev: {recorder.describe(seen)}, teacher {teacher}")
        recorder.snapshots = False
        if self.options.doctor:
            self._doctor.examine(seen, self.loss, self._occasion(None))

    def manual_terms(self, loss: Tensor) -> Report | None:
        """Return the terms that belong into a loss under manual optimization."""
        recorder, call = self.plan.recorder, self.options.observe.call
        watch = recorder.called()
        if watch is None:
            return None
        open_calls = [seen for seen in watch.observed if seen.number not in self._decided]
        reached = _reached(loss, open_calls)
        if isinstance(call, int) and call < 0:
            reached = [seen for seen in reached if seen.number == watch.calls + call]
            recorder.is_closed = bool(reached)
        if not reached:
            return None
        self._decided.update(seen.number for seen in reached)
        self._gave += 1
        if self._gave == 2 and self.options.manual_scale == 1.0:
            self._say_scale()
        report = self.terms(reached if call == "all" else reached[:1], loss)
        recorder.resume()
        return report

    def _say_scale(self) -> None:
        if not getattr(self, "_is_scale_said", False):
            self._is_scale_said = True
            rank_zero_info(
                "Sobolev: this step calls manual_backward several times, and each of its losses has "
                "its terms with their full weight; where losses are divided by N, say "
                "manual_scale=1/N"
            )

    def check_manual(self) -> None:
        """Refuse a manual step of which a chosen call has no term."""
        recorder, call = self.plan.recorder, self.options.observe.call
        watch = recorder.called()
        if watch is None:
            if not recorder.chosen():
                self._count_missing(1.0)
            return
        if not self._gave and watch.observed and call == "first":
            raise ValueError(_NO_BACKWARD)
        if isinstance(call, int):
            recorder.chosen()  # an index that was never reached is refused there
        is_open = [seen for seen in watch.observed if seen.number not in self._decided]
        if call == "all" or (isinstance(call, int) and (call >= 0 or not self._gave)):
            if is_open:
                number = f"call {is_open[-1].number} of {watch.calls}"
                raise ValueError(f"{_NO_BACKWARD}; it was {number}, chosen by call={call!r}")

    def check_gradients(self, loss: Tensor, leaves: list[Tensor]) -> None:
        """Refuse NaN in the gradients of a finite loss, before an optimizer takes them in."""
        report = self.report
        if report is None or not report.terms or self.loss.forgives_overflow:
            return
        # What is no number anywhere in the student is none in the gradient of its input.
        found = [leaf.grad for leaf in leaves if leaf.grad is not None]
        if not found or len(found) < len(leaves):
            of_weights = (p.grad for p in self._module.parameters() if p.grad is not None)
            found = [getattr(gradient, "_local_tensor", gradient) for gradient in of_weights]
        if found:
            size = found[0].norm() if len(found) == 1 else get_total_norm(found)
            # A loss that is no number itself is its user's to see.
            is_number = loss.detach().isfinite()
            size = torch.where(is_number, size, torch.zeros_like(size))
            self.loss.checks.settle([(size, self._judge_gradient)])

    def _judge_gradient(self, size: float) -> None:
        if math.isfinite(size):
            return
        for name, parameter in self._module.named_parameters():
            gradient = parameter.grad
            if gradient is not None and bool(getattr(gradient, "_local_tensor", gradient).isnan().any()):
                raise FloatingPointError(
                    f"the gradient of parameter {name!r} must be finite, got NaN although the loss "
                    "and its terms are finite: a derivative of the student has no derivative here "
                    "(a root or a norm at zero?)"
                )

    def validate(self, stage: str, batch: Any, number: int) -> None:
        """Log the terms and cosines at what a step of validation or test called."""
        recorder, module = self.plan.recorder, self._module
        observed = recorder.chosen()
        recorder.stop()
        if not observed:
            return
        with torch.inference_mode(False), torch.enable_grad():
            seen = [one.outside_of_inference() for one in observed]
            batch = _paths.map_tensors(batch, torch.clone)
            step_now = 0 if self._trainer is None else self._trainer.global_step
            occasion = Occasion(number, step_now, batch, trains=False)
            self.loss.scales.frozen = True
            try:
                report = self.loss.evaluate(seen, occasion)
            finally:
                self.loss.scales.frozen = False
        options = {"on_step": False, "on_epoch": True, "batch_size": report.size}
        for key, value in report.terms.items():
            module.log(log_key(stage, key), value.detach(), **options)  # type: ignore[arg-type]
        for key, value in report.cosines.items():
            module.log(log_key(stage, f"{key}_cosine"), value, **options)  # type: ignore[arg-type]

    def _leave(self, module: LightningModule) -> None:
        step.uninstall(module, self)
        self._doctor.forget()
        self._is_loaded = False
        self._trainer, self._plan = None, None
        if self.report is not None:
            self.report = self.report.detached()


_NO_BACKWARD = (
    "under manual optimization the term enters through self.manual_backward(loss) with a loss that "
    "depends on the observed output, but training_step made no such call for it; loss.backward() "
    "cannot be seen from outside, and call= names another call of the student"
)


def _weighted(spec: SobolevSpec, weight: float | Schedule) -> SobolevTerm:
    import dataclasses

    return dataclasses.replace(spec.terms[0], weight=weight)


def _reached(loss: Tensor, observed: list[Observed]) -> list[Observed]:
    wanted = {seen.node: seen for seen in observed if seen.node is not None}
    stack, visited = [loss.grad_fn], {loss.grad_fn}
    found: list[Observed] = []
    while stack and len(found) < len(wanted):
        node = stack.pop()
        if node in wanted:
            found.append(wanted[node])
        new = {child for child, _ in node.next_functions} - visited if node is not None else set()
        visited |= new
        stack += new
    return sorted(found, key=lambda seen: seen.number)
