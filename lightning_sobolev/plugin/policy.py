"""What a callback was told, resolved for one module."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from lightning_sobolev._types import Teacher
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.plugin.compiling import CompileSettings
from lightning_sobolev.plugin.observe import Call
from lightning_sobolev.plugin.protect import protected
from lightning_sobolev.plugin.select import Wrt
from lightning_sobolev.spec import SobolevSpec


@dataclass(frozen=True)
class Policy:
    """What a callback was told, and what was found of its module and trainer."""

    teacher: Teacher
    spec: SobolevSpec
    module: str | None
    wrt: Wrt
    output: str | int | None
    call: Call
    engine: str
    batch_norm: str
    compiled: bool  # something in the step, by the user
    inner_precision: InnerPrecision = "float32"
    mixed_step: bool = False  # the step itself runs in inner_precision already
    half: bool = False
    non_finite: Literal["raise", "skip"] = "raise"
    recurrent: bool = True
    sharded: bool = True
    compile: CompileSettings | None = None  # how the observed call is

    @property
    def pushed(self) -> int | None:
        """Index of the term whose tangents the func engine pushes through the forward itself."""
        terms = self.spec.terms
        tangents = [i for i, t in enumerate(terms) if t.order == 1 and t.side == "tangent"]
        alone = len(tangents) == 1 and not any(t.needs_cotangents for t in terms)
        pushes = self.engine == "func" and self.compile is None
        return tangents[0] if alone and pushes else None

    @property
    def again(self) -> bool:
        """Whether even a term on all rows is evaluated by a forward of its own."""
        elsewise = self.inner_precision == "bf16-mixed" and not self.mixed_step
        return self.batch_norm == "eval" or elsewise

    @property
    def only_again(self) -> bool:
        """Whether every term is evaluated by a forward of its own."""
        return self.again or all(term.rows < 1.0 for term in self.spec.terms)

    @property
    def exact_norms(self) -> bool:
        """Whether norms must be written out for the parameter gradients to be right."""
        return any(term.needs_tangents for term in self.spec.terms)

    def protected(self) -> AbstractContextManager[None]:
        """Return the remedies under which the step runs."""
        return protected(
            exact_norms=self.exact_norms, compiled=self.compiled, recurrent=self.recurrent
        )
