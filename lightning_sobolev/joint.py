"""Value, derivatives and terms in one function that ``torch.compile`` takes whole.

A compiled network cannot be differentiated twice from outside. What is compiled is therefore the
whole of it: the student's forward, its projected derivatives through ``torch.func``, the frozen
teacher's, and the distances of every term; one ordinary backward pass remains outside.

Note [forward mode by transposition]
    Columns J v are taken as the transpose of the pullback, :class:`FuncJet` without ``tangents``.
    The compiler drops the row that is pulled back on the way. ``torch.func.jvp`` itself is refused
    by inductor for parameters without tangents, and by fake tensors for norms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_sobolev._types import BatchFn
from lightning_sobolev.compared import Matched, compare
from lightning_sobolev.functional.derivatives import FuncJet
from lightning_sobolev.objective import answer, projected
from lightning_sobolev.spec import SobolevTerm

Directions = tuple[Tensor | None, Tensor | None]
"""Cotangents and tangents of one term, where it needs them."""


@dataclass(frozen=True, slots=True)
class Joint:
    """What one evaluation gives; ``aux`` is what the student returned beside its value."""

    aux: Any
    value: Tensor
    matched: dict[int, Matched]


def value_and_matched(
    student: Callable[[Tensor], tuple[Tensor, Any]], x: Tensor,
    terms: Mapping[int, SobolevTerm], directions: Mapping[int, Directions],
    targets: BatchFn | Mapping[int, Tensor], *,
    allows_unknown: bool = False, non_finite: Literal["raise", "skip"] = "raise",
) -> Joint:  # fmt: skip
    """Return a student's value and its distances from its teacher, with a graph.

    One forward pass of the student and, for each projection, the passes of a :class:`FuncJet`; the
    same for a teacher that is given as a function. Assumes row independence, and norms written out
    where columns are trained on. Looks at no number and draws none.
    """
    jet = FuncJet(student, x, has_aux=True)
    teacher = None if isinstance(targets, Mapping) else FuncJet(targets, x.detach())
    matched = {}
    for index, term in terms.items():
        u, v = directions[index]
        if isinstance(targets, Mapping):
            theirs = targets[index]
        else:
            assert teacher is not None
            theirs = answer(term, jet, teacher, u, v)
        ours = projected(term, jet, u, v)
        matched[index] = compare(
            term, ours, theirs, allows_unknown=allows_unknown, non_finite=non_finite
        )
    return Joint(jet.aux, jet.value, matched)
