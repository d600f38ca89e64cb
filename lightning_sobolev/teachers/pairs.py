"""Stored pairs of a direction and the derivative along it, and which of them a step takes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._groups import Groups
from lightning_sobolev._types import Query
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.teachers.tabulated import flat_rows

Stored = Float[Tensor, "rows stored *rest"]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Directions and derivatives of which NaN is not known, by row and stored pair.

    With groups a pair belongs to a whole group: its direction has a row for every row of the group,
    or one, and so has its derivative. It is known if all of its direction is, and some of its
    derivative.

    Args:
        directions: The directions.
        derivatives: The derivatives along them, with as many stored pairs.
        groups: Groups of the input rows; None where every row is one of its own.
        of_input: Whether directions, and whether derivatives, have the rows of the input.
    """

    directions: Stored
    derivatives: Stored
    groups: Groups | None
    of_input: tuple[bool, bool]

    def of_step(self, query: Query, per_step: int | None, salt: int) -> "Pairs":
        """Return those that a step takes, the derivatives along unknown directions unknown.

        Every group takes ``per_step`` of its known pairs at random without replacement, a pure
        function of the query's seed; None takes all there are, in order.
        """
        unknown = self._of_groups(_any(self.directions.isnan()), 0)
        kept = Pairs(
            self.directions, self._masked(unknown), self.groups, self.of_input,
        )  # fmt: skip
        if per_step is None:
            return kept
        count = self.directions.shape[1]
        require(per_step <= count, "per_step", f"at most the {count} stored directions", per_step)
        known = self._of_groups(~_all_nan(self.derivatives), 1) & ~unknown
        generator = generator_for(*query.seed, salt)
        scores = torch.rand(known.shape, generator=generator).to(known.device)
        chosen = scores.masked_fill(~known, -1.0).topk(per_step, dim=1).indices
        return Pairs(
            _taken(kept.directions, self._of_rows(chosen, 0)),
            _taken(kept.derivatives, self._of_rows(chosen, 1)),
            self.groups,
            self.of_input,
        )

    def _masked(self, unknown: Shaped[Tensor, "groups stored"]) -> Stored:
        # Infinity is no direction; along it the derivative is none that a term takes.
        infinite = self._of_groups(_any(self.directions.isinf()), 0)
        derivatives = self.derivatives
        for flags, mark in ((unknown, torch.nan), (infinite, torch.inf)):
            mask = _reaching(self._of_rows(flags, 1), derivatives)
            derivatives = derivatives.masked_fill(mask, mark)
        return derivatives

    def _index(self, part: int) -> Int[Tensor, " rows"] | None:
        # The group of every row; None where row b is group b.
        groups = self.groups
        if groups is None or not (self.of_input[part] or groups.per_row):
            return None
        return groups.index

    def _of_groups(self, flags: Tensor, part: int) -> Tensor:
        # Whether any row of a group has the flag.
        index, groups = self._index(part), self.groups
        if index is None or groups is None:
            return flags
        return groups.summed(flags.T.float()).T > 0

    def _of_rows(self, of_groups: Tensor, part: int) -> Tensor:
        index = self._index(part)
        return of_groups if index is None else of_groups.index_select(0, index)


def _any(flags: Stored) -> Shaped[Tensor, "rows stored"]:
    return flat_rows(flags).any(-1)


def _all_nan(stored: Stored) -> Shaped[Tensor, "rows stored"]:
    return flat_rows(stored.isnan()).all(-1)


def _reaching(flags: Tensor, stored: Stored) -> Tensor:
    return flags.reshape(*flags.shape, *[1] * (stored.ndim - 2))


def _taken(stored: Stored, chosen: Int[Tensor, "rows taken"]) -> Stored:
    index = _reaching(chosen, stored).expand(*chosen.shape, *stored.shape[2:])
    return stored.gather(1, index)
