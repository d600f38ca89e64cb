"""What is refused before any work is lost."""

from typing import get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Teacher
from lightning_sobolev.balance import Balanced
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.spec import SobolevSpec
from lightning_sobolev.teachers import NetworkTeacher

_NO_DOUBLE_BACKWARD = {
    "FSDPStrategy": "torch's FullyShardedDataParallel says so itself",
    "DeepSpeedStrategy": "its engine takes over the backward pass; not verified here",
}

CHOICES: dict[str, tuple[str, ...]] = {
    "call": ("first", "all"),
    "engine": ("auto", "tape", "func"),
    "batch_norm": ("train", "eval"),
    "non_finite": ("raise", "skip"),
    "inner_precision": get_args(InnerPrecision),
}


def check_choices(call: str | int, **given: str) -> None:
    """Refuse words that a callback does not know."""
    if not isinstance(call, int) and call not in CHOICES["call"]:
        raise ValueError(f"call must be 'first', 'all' or an index, got {call!r}")
    for name, word in given.items():
        *most, last = map(repr, CHOICES[name])
        if word not in CHOICES[name]:
            raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {word!r}")


def as_teacher(teacher: object, output: str | int | None) -> Teacher:
    """Wrap a module in a :class:`NetworkTeacher`; refuse what is neither."""
    if output is not None:
        _paths.parse(output)
    if isinstance(teacher, nn.Module):
        return NetworkTeacher(teacher, output=output)
    if not isinstance(teacher, Teacher):
        raise ValueError(f"teacher must be a Teacher or a module, got {type(teacher).__name__}")
    return teacher


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that have no double backward."""
    # By name: pytorch_lightning has classes of its own.
    for name in (kind.__name__ for kind in type(trainer.strategy).__mro__):
        if name in _NO_DOUBLE_BACKWARD:
            raise ValueError(
                f"strategy: {name} does not support double backward, which a derivative term "
                f"needs ({_NO_DOUBLE_BACKWARD[name]}); use ModelParallelStrategy with torch's "
                "fully_shard (FSDP2), or DDPStrategy"
            )


def check_modules(
    module: LightningModule, teacher: Teacher, target: str | None, inner_precision: InnerPrecision
) -> None:
    """Refuse a student that is not there, is its own teacher, or ignores the inner precision."""
    # Not only those that named_modules() lists: it gives a shared submodule one name.
    if target is not None and not _has_submodule(module, target):
        names = [name for name, _ in module.named_modules() if name]
        raise ValueError(f"module must name a submodule, one of {names}, got {target!r}")
    is_double = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    if inner_precision == "bf16-mixed" and is_double:
        raise ValueError(
            f"inner_precision={inner_precision!r} needs a student in float32, got one in float64, "
            "which autocast leaves alone"
        )
    if isinstance(teacher, NetworkTeacher):
        own = {id(parameter) for parameter in module.parameters()}
        shared = [n for n, p in teacher.network.named_parameters() if id(p) in own]
        if shared:
            raise ValueError(
                "teacher must not share parameters with the student, which it froze; got "
                f"{len(shared)} shared ones, first {shared[0]!r}; pass copy.deepcopy(network)"
            )


def _has_submodule(module: nn.Module, name: str) -> bool:
    try:
        return module.get_submodule(name) is not module
    except AttributeError:
        return False


def check_weights(spec: SobolevSpec, *, sharded: bool, compiled: bool, searches: bool) -> None:
    """Refuse weights that cannot be measured."""
    # Balancing takes gradients of which no process has the whole (sharded), two backward passes
    # through a graph that gives its buffers away in one (compiled), and would change the function
    # that a line search compares within one step.
    obstacles = {
        "parameters are sharded over processes": sharded,
        "the student is compiled": compiled,
        "the optimizer searches along lines": searches,
    }
    where = next((text for text, holds in obstacles.items() if holds), None)
    for term in spec.terms:
        fits = where is None or not isinstance(term.weight, Balanced)
        expected = f"a number or a schedule where {where}"
        require(fits, f"weight of {term.key}", expected, term.weight)


def searches_lines(trainer: Trainer) -> bool:
    """Whether an optimizer evaluates a step several times to compare losses."""
    return any(isinstance(one, torch.optim.LBFGS) for one in trainer.optimizers)


def check_optimizers(trainer: Trainer, module: LightningModule) -> None:
    """Refuse L-BFGS under manual optimization, where later evaluations would miss the term."""
    if searches_lines(trainer) and not module.automatic_optimization:
        raise ValueError(
            "automatic_optimization must be True with torch.optim.LBFGS, got False: under manual "
            "optimization the term would be in the first evaluation of the closure alone"
        )


def is_compiled(module: nn.Module) -> bool:
    """Whether the module or one below it was compiled."""
    return getattr(module, "_compiler_ctx", None) is not None or any(
        hasattr(part, "_orig_mod") or part._compiled_call_impl is not None
        for part in module.modules()
    )
