"""What a callback was told, and what its module and trainer make of it."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev.plugin.checks import (
    as_teacher,
    check_choices,
    check_optimizers,
    check_weights,
    is_compiled,
    searches_lines,
)
from lightning_sobolev.plugin.compiling import CompileSettings
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.precision import half_state
from lightning_sobolev.plugin.protect import has_recurrent, sharded_parts
from lightning_sobolev.spec import SobolevSpec


def resolve(
    trainer: Trainer,
    lightning_module: LightningModule,
    *,
    engine: str,
    compile: CompileSettings | bool,
    **told: Any,
) -> Policy:
    """Resolve what a callback was told."""
    compiled = is_compiled(lightning_module)
    chosen = _chosen_compile(compile, lightning_module, compiled)
    if chosen is not None:
        rank_zero_info(
            f"Sobolev: engine='func', compiled ({chosen.backend}) as one graph with the terms; "
            "held against eager numbers on the first batch"
        )
        engine = "func"
    check_optimizers(trainer, lightning_module)
    is_sharded, compiles = bool(sharded_parts(lightning_module)), compiled or chosen is not None
    searches = searches_lines(trainer)
    check_weights(told["spec"], sharded=is_sharded, compiled=compiles, searches=searches)
    return Policy(
        engine="tape" if engine == "auto" else engine,
        compiled=compiled,
        mixed_step=trainer.precision == told["inner_precision"],
        recurrent=has_recurrent(lightning_module),
        sharded=is_sharded,
        half="16" in str(trainer.precision),
        compile=chosen,
        **told,
    )


def checked_options(
    teacher: object,
    spec: SobolevSpec | None,
    engine: str,
    compile: CompileSettings | bool | None,
    **told: Any,
) -> dict[str, Any]:
    """Check what a callback is told, before there is a trainer."""
    spec = SobolevSpec() if spec is None else spec
    if not isinstance(spec, SobolevSpec):
        raise ValueError(f"spec must be a SobolevSpec, got {type(spec).__name__}")
    words = ("call", "batch_norm", "non_finite", "inner_precision")
    check_choices(engine=engine, **{name: told[name] for name in words})
    told |= {"teacher": as_teacher(teacher, told["output"]), "spec": spec, "engine": engine}
    return {**told, "compile": _as_compile_settings(compile, engine)}


def _as_compile_settings(
    compile: CompileSettings | bool | None, engine: str
) -> CompileSettings | bool:
    if compile is None:  # True then means "if the module is compiled"
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
