"""What a callback was told, and what its module and trainer make of it."""

import math
from dataclasses import dataclass, field
from typing import get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev.doctor.outlook import OnMislead
from lightning_sobolev.doctor.watch import OnFault
from lightning_sobolev.loss.balance import check_balanced
from lightning_sobolev.loss.compiled import Compiler
from lightning_sobolev.loss.compiling import CompileSettings
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.observe.call import is_half
from lightning_sobolev.observe.options import ObserveOptions, check_word
from lightning_sobolev.observe.recorder import Recorder
from lightning_sobolev.observe.remedies import is_compiled, is_entered_compiled, sharded_parts

_NO_DOUBLE_BACKWARD = {
    "FSDPStrategy": "torch's FullyShardedDataParallel says so itself",
    "DeepSpeedStrategy": "its engine takes over the backward pass; not verified here",
}
# By name: pytorch_lightning has classes of its own.
_FINDERS = ("LearningRateFinder", "BatchSizeFinder")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a callback was told beside teacher and terms."""

    module: str | None = None
    observe: ObserveOptions = field(default_factory=ObserveOptions)
    doctor: bool = True
    validate: bool = False
    manual_scale: float = 1.0
    compile: CompileSettings | bool | None = None
    on_mislead: OnMislead = "warn"
    labels: OnFault = "warn"

    def __post_init__(self) -> None:
        check_word("on_mislead", self.on_mislead, get_args(OnMislead))
        check_word("labels", self.labels, ("warn", "raise", "off"))
        fits = self.compile is None or isinstance(self.compile, bool | CompileSettings)
        require(fits, "compile", "True, False or CompileSettings", self.compile)
        if self.compile and self.observe.engine == "tape":
            raise ValueError("compile needs engine='func' or 'auto', got engine='tape'")
        require(
            not self.compile or self.observe.groups is None,
            "groups",
            "None with compile",
            self.observe.groups,
        )
        is_number = (
            isinstance(self.manual_scale, int | float) and 0.0 < self.manual_scale < math.inf
        )
        require(is_number, "manual_scale", "a finite number > 0", self.manual_scale)


@dataclass(frozen=True, eq=False)
class Plan:
    """What holds for one fit."""

    recorder: Recorder
    compiler: Compiler | None
    eager_step: bool


def resolve(trainer: Trainer, module: LightningModule, options: Options, loss: SobolevLoss) -> Plan:
    """Check a module and its trainer, and find out what holds for the fit."""
    check_modules(module, loss, options)
    compiled = is_compiled(module)
    settings = _chosen_compile(options, module, compiled)
    searches = any(isinstance(one, torch.optim.LBFGS) for one in trainer.optimizers)
    if searches and not module.automatic_optimization:
        raise ValueError(
            "automatic_optimization must be True with torch.optim.LBFGS, got False: under manual "
            "optimization each evaluation of the closure would have directions of its own"
        )
    obstacles = {
        "parameters are sharded over processes": bool(sharded_parts(module)),
        "the student is compiled": compiled or settings is not None,
        "the optimizer searches along lines": searches,
    }
    obstacle = next((text for text, holds in obstacles.items() if holds), None)
    check_balanced(loss.spec.terms, obstacle)
    recorder = loss.recorder_of(
        module, options.module, options.observe,
        every_call=not module.automatic_optimization, compiled=compiled,
    )  # fmt: skip
    compiler = None
    if settings is not None:
        points = next((term.points for term in loss.spec.terms if term.points is not None), None)
        require(points is None, "points", "None with compile", points)
        compiler = Compiler(loss, recorder, settings, nested=compiled)
        recorder.engine, recorder.compiled = "tape", compiler  # the tape, should it not compile
    if not any(parameter.requires_grad for parameter in module.parameters()):
        rank_zero_info("Sobolev: no parameter requires a gradient: a term trains nothing")
    _say_engine(options, compiled, compiler is not None, "16" in str(trainer.precision))
    return Plan(recorder, compiler, is_entered_compiled(module))


def _say_engine(options: Options, compiled: bool, compiles: bool, half: bool) -> None:
    if options.observe.engine == "auto" and not compiles:
        text = "compiled parts of the student run eager meanwhile; engine='func' compiles them, too"
        eager = f"; {text}" if compiled else ""
        rank_zero_info(f"Sobolev: engine='tape', which reuses the step's own forward{eager}")
    if half and options.observe.inner_precision == "float32":
        rank_zero_info(
            "Sobolev: derivatives are taken in a replay in float32; inner_precision='step' takes "
            "them from the step's own forward"
        )


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that have no double backward."""
    for name in (kind.__name__ for kind in type(trainer.strategy).__mro__):
        if name in _NO_DOUBLE_BACKWARD:
            raise ValueError(
                f"strategy: {name} does not support double backward, which a derivative term "
                f"needs ({_NO_DOUBLE_BACKWARD[name]}); use ModelParallelStrategy with torch's "
                "fully_shard (FSDP2), or DDPStrategy"
            )


def check_modules(module: LightningModule, loss: SobolevLoss, options: Options) -> None:
    """Refuse a student that is not there, is its own teacher, or ignores the inner precision."""
    target = options.module
    # Not only those that named_modules() lists: it gives a shared submodule one name.
    if target is not None and not _has_submodule(module, target):
        names = [name for name, _ in module.named_modules() if name]
        raise ValueError(f"module must name a submodule, one of {names}, got {target!r}")
    inner = options.observe.inner_precision
    is_double = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    if inner == "bf16-mixed" and is_double:
        raise ValueError(
            f"inner_precision={inner!r} needs a student in float32, got one in float64, which "
            "autocast leaves alone"
        )
    loss.teacher.check_apart(module, target)


def _has_submodule(module: nn.Module, name: str) -> bool:
    try:
        return module.get_submodule(name) is not module
    except AttributeError:
        return False


def _chosen_compile(options: Options, module: nn.Module, compiled: bool) -> CompileSettings | None:
    settings = options.compile
    if settings is None:
        settings = compiled and options.observe.engine == "func"
    if isinstance(settings, bool):
        if not settings:
            return None
        settings = CompileSettings()
    if is_half(module):
        raise ValueError(
            "compile needs parameters in at least float32, got half-precision ones; "
            "Trainer(precision='bf16-mixed') keeps them"
        )
    rank_zero_info(
        f"Sobolev: engine='func', compiled ({settings.backend}) as one graph with the terms; "
        "held against eager numbers on the first batch"
    )
    return settings


def ahead_of_finders(trainer: Trainer, callback: Callback) -> None:
    """Let ``callback`` begin before those that search for a setting, else by the plain loss."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [other for other in callbacks if other is not callback]
    places = [n for n, other in enumerate(others) if type(other).__name__ in _FINDERS]
    if places:
        moved = [*others[: places[0]], callback, *others[places[0] :]]
        trainer.callbacks = moved  # type: ignore[attr-defined]
