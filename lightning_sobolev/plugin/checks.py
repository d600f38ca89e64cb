"""What is refused before any work is lost."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_sobolev._types import Teacher
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


def check_modules(module: LightningModule, teacher: Teacher, target: str | None) -> None:
    """Refuse a student that is not there, or is its own teacher.

    Args:
        module: The LightningModule.
        teacher: The callback's teacher.
        target: Name of the observed submodule.

    Raises:
        ValueError: If the submodule does not exist, or the teacher shares its parameters.
    """
    names = [name for name, _ in module.named_modules() if name]
    if target is not None and target not in names:
        raise ValueError(f"module must name a submodule, one of {names}, got {target!r}")
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
