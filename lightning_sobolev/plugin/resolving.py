"""What a callback was told, and what its module and trainer make of it."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev.plugin.checks import (
    check_optimizers,
    check_weights,
    is_compiled,
    searches_lines,
)
from lightning_sobolev.plugin.compiling import CompileSettings
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.precision import half_state
from lightning_sobolev.plugin.protect import has_recurrent, sharded_parts


def resolve(
    trainer: Trainer,
    lightning_module: LightningModule,
    *,
    engine: str,
    compile: CompileSettings | bool,
    **told: Any,
) -> Policy:
    """Resolve what a callback was told.

    Args:
        trainer: Knows the precision.
        lightning_module: On its device.
        engine: ``"auto"``, ``"tape"`` or ``"func"``.
        compile: From :func:`as_compile_settings`.
        **told: The other fields of a policy that were told.

    Returns:
        The policy.

    Raises:
        ValueError: If the module is to be compiled and has parameters in half precision, or the
            optimizer or a weight cannot work here.
    """
    compiled = is_compiled(lightning_module)
    chosen = _chosen_compile(compile, lightning_module, compiled)
    if chosen is not None:
        rank_zero_info(
            f"Sobolev: engine='func', compiled ({chosen.backend}) as one graph with the terms; "
            "held against eager numbers on the first batch"
        )
        engine = "func"
    check_optimizers(trainer, lightning_module)
    policy = Policy(
        engine="tape" if engine == "auto" else engine,
        compiled=compiled,
        mixed_step=trainer.precision == told["inner_precision"],
        recurrent=has_recurrent(lightning_module),
        sharded=bool(sharded_parts(lightning_module)),
        half="16" in str(trainer.precision),
        compile=chosen,
        **told,
    )
    check_weights(
        policy.spec,
        sharded=policy.sharded,
        compiled=compiled or chosen is not None,
        searches=searches_lines(trainer),
    )
    return policy


def as_compile_settings(
    compile: CompileSettings | bool | None, engine: str
) -> CompileSettings | bool:
    """Check ``compile``.

    Args:
        compile: As a callback got it.
        engine: The engine that was asked for.

    Returns:
        Settings; False for never; True for "if the module is compiled".

    Raises:
        ValueError: If it is none of its choices, or the engine cannot be compiled.
    """
    if compile is None:
        return engine == "func"
    if not isinstance(compile, bool | CompileSettings):
        raise ValueError(f"compile must be True, False or CompileSettings, got {compile!r}")
    if compile and engine == "tape":
        raise ValueError("compile needs engine='func' or 'auto', got engine='tape'")
    return CompileSettings() if compile is True else compile


def _chosen_compile(
    asked: CompileSettings | bool, module: nn.Module, compiled: bool
) -> CompileSettings | None:
    settings = asked if isinstance(asked, CompileSettings) else CompileSettings()
    if not asked or (asked is True and not compiled):
        return None
    if half_state(module):
        raise ValueError(
            "compile needs parameters in at least float32, got half-precision ones; "
            "Trainer(precision='bf16-mixed') keeps them"
        )
    return settings
