r"""Second derivatives between two inputs, :math:`\partial^2 f / \partial a\, \partial b`."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._groups import stacked
from lightning_sobolev._types import Directions, InRows, Query
from lightning_sobolev.functional.projections import PROJECTIONS, draw, generator_for
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.along import KnownAlong
from lightning_sobolev.teachers.arrays import Rows, factor, lookup
from lightning_sobolev.teachers.tabulated import contract

_NAME = "MixedTeacher"
_SALT = 5


class MixedTeacher(KnownAlong):
    r"""Mixed second derivatives of a scalar output in two inputs that ``wrt`` names.

    With ``wrt=["position", "field"]`` and the block :math:`M = \partial^2 E / \partial a\,\partial
    b` of the Hessian (first input a, second b) the term compares, along a random direction v of the
    second input, :math:`\nabla_a \langle \nabla_b E, v \rangle` with :math:`M v`: born effective
    charges, sensitivities of a gradient to a parameter. In expectation that is the whole block.

    Cost: one Hessian-vector product for each projection. With graphs in one table (``groups=``)
    the inputs may have different rows, those of nodes and of graphs: M has the rows of the first,
    and each node the direction of its graph. Rows of the second input are then counted as unknown
    in the log.

    Args:
        mixed: Key path of M, ``[batch, *first, *second]``; NaN is not known.
        value: Key path of the value, for order-0 terms.
        scale: What M is multiplied with, such as -1.0 for derivatives of forces.
        stores_mapped: Whether the arrays are those of the output behind the spec's output map.

    Raises:
        ValueError: If the scale is no finite number other than zero.
    """

    default_term = SobolevTerm(order=2, name="mixed")

    def __init__(
        self, mixed: str | int, value: str | int | None = None, *,
        scale: float = 1.0, stores_mapped: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(value, stores_mapped=stores_mapped)
        self._mixed, self._scale = _paths.parse(mixed, "mixed"), factor(scale)

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return directions of the second input, with the derivatives of the first along them."""
        if term.order == 0:
            return None
        fits = term.order == 2 and term.projection in PROJECTIONS
        got = f"order {term.order}, projection {term.projection!r}"
        require(fits, f"term {term.key!r}", f"of order 2 with a projection of {PROJECTIONS}", got)
        self._check(query)
        shapes = [] if query.call is None else list(query.call.shapes)
        require(len(shapes) == 2, "wrt", f"two inputs with {_NAME}", shapes)
        groups = query.groups
        if groups is not None and groups.blocks:
            return self._of_blocks(query, term, shapes)
        own = groups is None or groups.count == len(groups.index)
        require(own, "wrt", "an input of nodes and one of graphs with groups=", shapes)
        first, second = (torch.Size(shape).numel() for shape in shapes)
        v = _drawn(query, term, (len(query.x), second))
        tangents = torch.nn.functional.pad(v, (first, 0))

        def read(rows: InRows) -> Tensor:
            return rows[..., :first]

        target = contract("bij,pbj->pbi", self._block(query, Rows.of_input(query), shapes), v)
        ones = v.new_ones(*_count(term, v), query.outputs)
        return Directions(ones, tangents, read, target)

    def _of_blocks(
        self, query: Query, term: SobolevTerm, shapes: Sequence[Sequence[int]]
    ) -> Directions:
        groups = query.groups
        assert groups is not None
        parts, rows = groups.parts(), Rows.of_blocks(query)
        index = groups.index[parts[0]]
        graphs = rows[1].size == groups.outputs
        require(graphs, "wrt", "an input of nodes before one of graphs", [r.size for r in rows])
        v = _drawn(query, term, (rows[1].size, torch.Size(shapes[1]).numel()))
        mixed = self._block(query, rows[0], shapes)
        known = contract("bij,pbj->pbi", mixed, v.index_select(1, index))
        first, second = mixed.new_zeros(mixed.shape[:2]), v.new_full(v.shape[1:], torch.nan)
        tangents = torch.stack([stacked([first, own]) for own in v])
        target = torch.stack([stacked([own, second], fill=torch.nan) for own in known])
        return Directions(v.new_ones(*_count(term, v), query.outputs), tangents, None, target)

    def _block(self, query: Query, rows: Rows, shapes: Sequence[Sequence[int]]) -> Tensor:
        given = cast(Tensor, lookup("mixed", self._mixed, query, _NAME, rows))
        expected = (*shapes[0], *shapes[1])
        if tuple(given.shape[1:]) != expected:
            raise ValueError(
                f"mixed must have shape [batch, *first, *second] with *first = {list(shapes[0])} "
                f"and *second = {list(shapes[1])}, the inputs in the order of wrt=, got "
                f"{list(given.shape)}"
            )
        sizes = [torch.Size(shape).numel() for shape in shapes]
        return given.reshape(len(given), *sizes) * self._scale


def _drawn(query: Query, term: SobolevTerm, shape: tuple[int, int]) -> Tensor:
    return draw(
        cast(str, term.projection), shape, num_projections=term.num_projections,
        generator=generator_for(*query.seed, _SALT), dtype=query.x.dtype, device=query.x.device,
    )  # fmt: skip


def _count(term: SobolevTerm, tangents: Tensor) -> tuple[int]:
    return (1 if term.num_projections is None else len(tangents),)
