"""Sobolev terms for any LightningModule, by a callback."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_sobolev._types import Teacher
from lightning_sobolev.draws import Draws
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.objective import weighted_sum
from lightning_sobolev.plugin import checks, doctor, findings, step
from lightning_sobolev.plugin.compiled import Choices, Compiler
from lightning_sobolev.plugin.compiling import CompileSettings
from lightning_sobolev.plugin.cost import Cost, CostMeter
from lightning_sobolev.plugin.matching import StepPart, attached, evaluate
from lightning_sobolev.plugin.observation import Observation
from lightning_sobolev.plugin.observe import Call
from lightning_sobolev.plugin.order import ahead_of_finders
from lightning_sobolev.plugin.outcome import Outcome, Reporter
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.progress import Progress, sum_over_processes
from lightning_sobolev.plugin.resolving import checked_options, resolve
from lightning_sobolev.plugin.select import Wrt, parse_wrt
from lightning_sobolev.readings import Readings
from lightning_sobolev.spec import SobolevSpec
from lightning_sobolev.teachers import AnalyticTeacher, BatchTeacher, NetworkTeacher


class SobolevCallback(Callback):
    r"""Adds derivative matching to the loss of any LightningModule while it is fitted.

    The module's own ``training_step`` runs unchanged; its call of the student is observed, the
    teacher is asked for the same projected derivatives at the same inputs, and

    .. math:: \sum_j w_j\,\text{term}_j

    is added to the loss it returned (or, under manual optimisation, to the loss it hands to
    ``manual_backward``). Logged are ``train/sobolev/{term}`` and ``train/sobolev/total``.

    Cost: for one order-1 projection about 2 to 3 times a plain step. Assumes that row b of the
    student's output depends on row b of its input alone.

    Args:
        teacher: Answers with value and derivatives; a module is wrapped in
            :class:`~lightning_sobolev.teachers.NetworkTeacher`.
        spec: What is matched; one projection of the Jacobian with weight 1 when None.
        module: Name of the submodule that maps the input to the matched output. None: the module
            itself or, if the step never calls that, the one child that it calls.
        wrt: The input: position, argument name or key path; None for the first float tensor. A
            list of several joins their rows into one input.
        call: Which call of the student counts in a step that makes several: ``"first"``,
            ``"all"`` (averaged) or an index.
        engine: ``"tape"`` reuses the step's own forward; ``"func"`` runs it inside
            ``torch.func``; ``"auto"`` takes the tape and says so once.
        batch_norm: ``"train"`` observes the step's forward as it is; ``"eval"`` takes the
            derivatives in a second forward with batch norms in eval mode, where rows are
            independent.
        output: Key path of the matched tensor in the student's output; None for the first.
        inner_precision: In which precision the student's derivatives are taken. ``"float32"``: at
            least that; a step in half precision gets a second forward for it. ``"step"``: from the
            step's own forward, with its digits. ``"bf16-mixed"``: under bfloat16 autocast, in a
            second forward unless the step runs so. The teacher keeps its own precision.
        seed: Seed of the projections; ranks differ, resumed runs continue.
        doctor: Whether to check, before the first update, that the terms' parameter gradient agrees
            with finite differences on this very student, and to measure ``cost`` behind it.
        non_finite: ``"raise"`` refuses a teacher's answer with NaN or Inf; ``"skip"`` leaves such
            rows out of the term, counts them in the log, and says so once.
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
        module: str | None = None,
        wrt: Wrt = None,
        call: Call = "first",
        engine: Literal["auto", "tape", "func"] = "auto",
        batch_norm: Literal["train", "eval"] = "train",
        output: str | int | None = None,
        inner_precision: InnerPrecision = "float32",
        seed: int = 0,
        doctor: bool = True,
        non_finite: Literal["raise", "skip"] = "raise",
        compile: CompileSettings | bool | None = None,
    ) -> None:
        super().__init__()
        self._told = checked_options(
            teacher, spec, engine, compile, module=module, wrt=parse_wrt(wrt), output=output,
            call=call, batch_norm=batch_norm, inner_precision=inner_precision,
            non_finite=non_finite,
        )  # fmt: skip
        self.teacher: Teacher = self._told["teacher"]
        self.spec: SobolevSpec = self._told["spec"]
        self.seed, self._doctor = seed, doctor
        self._progress = Progress()
        self._policy: Policy | None = None
        self._trainer: Trainer | None = None
        self._examined = False
        self._readings, self._meter = Readings(), CostMeter()
        self._reporter = Reporter(self._readings.later)
        self._compiler: Compiler | None = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(module=self._told["module"], wrt=self._told["wrt"])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            checks.check_strategy(trainer)
            ahead_of_finders(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in setup, where ``configure_model`` has built nothing yet.
        name = self._told["module"]
        checks.check_modules(pl_module, self.teacher, name, self._told["inner_precision"])
        if isinstance(self.teacher, NetworkTeacher):
            self.teacher.to(pl_module.device)  # the trainer moves no callback
        self._trainer = trainer
        policy = self._policy = resolve(trainer, pl_module, **self._told)
        self._compiler = None if policy.compile is None else Compiler(pl_module, policy)
        found = findings.scan(pl_module if name is None else pl_module.get_submodule(name), policy)
        findings.report(found, policy, chosen=self._told["engine"] == "auto")
        self._examined = not self._doctor
        step.install(pl_module, self)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._readings.flush()
        self._progress.begin_batch(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._readings.flush()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._policy is not None:
            self._meter.measure(self._policy, trainer.precision_plugin.train_step_context)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Lightning does not call teardown after a crash.
        self._progress.take_back(trainer)
        self._readings.forget()
        self._leave(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._progress.finished(self._trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._progress.load_state_dict(state_dict)

    @property
    def cost(self) -> Cost | None:
        """What the doctor measured on the first batch; None before, and without a doctor."""
        return self._meter.cost

    @property
    def term_keys(self) -> list[str]:
        """Names under which the terms are logged."""
        return [term.key for term in self.spec.terms]

    def begin(self, module: LightningModule, batch: Any) -> StepPart:
        """Begin the part in one training step; called by the shadowed step."""
        assert self._policy is not None
        assert self._trainer is not None
        number = self._progress.begin_evaluation(self._trainer)
        draws = Draws(self.seed, module.global_rank, number)
        global_step = self._trainer.global_step
        weights = {term.key: term.weight_at(global_step) for term in self.spec.terms}
        choices = Choices(self._policy, draws, weights, self._compiler)

        def finish(seen: list[Observation], batch: Any, value_loss: Tensor) -> Tensor:
            return self._finish(module, seen, self._evaluated(seen, batch, choices), value_loss)

        return StepPart(module, choices, finish, batch)

    def _evaluated(self, seen: list[Observation], batch: Any, choices: Choices) -> Outcome:
        with torch.autocast(seen[0].x.device.type, enabled=False):
            # What cannot be evaluated says so itself, before the doctor looks at it.
            outcome = evaluate(
                seen,
                batch,
                choices,
                self._progress.scales,
                sum_over_processes,
                self._readings.later,
            )
            self._reporter.check_finite(outcome, seen, self._trainer, self._progress.evaluations)
            if not self._examined:
                doctor.examine(seen[0], choices.policy, choices.draws)
                if choices.compiler is None:  # a copy would have to be compiled, too
                    self._meter.keep(seen[0], batch, choices.draws)
                self._examined = True
        return outcome

    def _finish(
        self, module: LightningModule, seen: list[Observation], outcome: Outcome, value_loss: Tensor
    ) -> Tensor:
        assert self._trainer is not None
        weights = self._progress.balance.weights(
            outcome.terms, self.spec.terms, self._trainer.global_step, value_loss,
            module.parameters, sum_over_processes,
        )  # fmt: skip
        self._reporter.log_weights(module, self.spec, weights, seen[0].size)
        self._reporter.log(module, outcome, seen[0].size)
        loss = attached(seen)
        return loss + weighted_sum(outcome.terms, weights) if outcome.terms else loss

    def _leave(self, module: LightningModule) -> None:
        step.uninstall(module, self)
        self._meter.forget()
        self._trainer, self._policy, self._compiler = None, None, None
