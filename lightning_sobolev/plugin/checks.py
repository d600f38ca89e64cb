"""What is refused before any work is lost."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_sobolev._types import Teacher
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.teachers import NetworkTeacher


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that have no double backward.

    Args:
        trainer: The trainer.

    Raises:
        ValueError: If its strategy is one of them.
    """
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        name = type(trainer.strategy).__name__
        raise ValueError(
            f"strategy: {name} does not support double backward, which a derivative term needs; "
            "use ModelParallelStrategy with torch's fully_shard (FSDP2), or DDPStrategy"
        )


def check_modules(
    module: LightningModule,
    teacher: Teacher,
    target: str | None,
    inner_precision: InnerPrecision | None = None,
) -> None:
    """Refuse a student that is not there, is its own teacher, or ignores the inner precision.

    Args:
        module: The LightningModule.
        teacher: The callback's teacher.
        target: Name of the observed submodule.
        inner_precision: In which precision derivatives are taken.

    Raises:
        ValueError: If the submodule does not exist, the teacher shares its parameters, or a lower
            inner precision is asked for where autocast does nothing.
    """
    names = [name for name, _ in module.named_modules() if name]
    if target is not None and target not in names:
        raise ValueError(f"module must name a submodule, one of {names}, got {target!r}")
    is_double = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    if inner_precision is not None and is_double:
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


def is_compiled(module: nn.Module) -> bool:
    """Whether the module or one below it was compiled."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(
        hasattr(part, "_orig_mod") or part._compiled_call_impl is not None
        for part in module.modules()
    )
