"""Basis vectors of a space, those of every row, and what is known of them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_sobolev._groups import Groups
from lightning_sobolev.teachers.tabulated import flat_rows


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """The basis vectors of every row; zeros where they are not finite.

    Args:
        each: The vectors.
        unknown: Which vectors have NaN in them, by output row; None where none has.
        infinite: Which have Inf in them.
    """

    each: Float[Tensor, "rows r *space"]
    unknown: Bool[Tensor, "outputs r"] | None = None
    infinite: Bool[Tensor, "outputs r"] | None = None

    @classmethod
    def read(cls, given: Float[Tensor, "rows r *space"], groups: Groups | None) -> "Vectors":
        """Return vectors that somebody stored; ``groups`` where one of them has several rows."""
        found = (flat_rows(flags).any(-1) for flags in (given.isnan(), given.isinf()))
        if groups is not None:
            found = (groups.summed(flags.T.float()).T > 0 for flags in found)
        return cls(given.nan_to_num(0.0, 0.0, 0.0), *found)

    @property
    def count(self) -> int:
        """How many each row has."""
        return self.each.shape[1]

    def marked(
        self, reduced: Float[Tensor, "rows r_out r_in"], axis: int,
        index: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows r_out r_in"]:  # fmt: skip
        """Return what is stored along the vectors, unknown where they are, infinite where they are.

        ``index`` is the output row of every row, where there are more.
        """
        for flags, mark in ((self.unknown, torch.nan), (self.infinite, torch.inf)):
            if flags is not None:
                own = flags if index is None else flags.index_select(0, index)
                reduced = reduced.masked_fill(own.unsqueeze(3 - axis), mark)
        return reduced

    def known_alone(
        self, coefficients: Float[Tensor, "proj outputs r"]
    ) -> Float[Tensor, "proj outputs r"]:
        """Return coefficients of the vectors that are known, where any is."""
        if self.unknown is None:
            return coefficients
        is_none = self.unknown.all(-1, keepdim=True)  # stays unknown as a whole
        return coefficients.masked_fill(self.unknown & ~is_none, 0.0)

    def combined(
        self, coefficients: Float[Tensor, "proj rows r"]
    ) -> Float[Tensor, "proj rows *space"]:
        """Return the sums of the vectors."""
        found = torch.einsum("pbr,brd->pbd", coefficients, self._flat)
        return found.reshape(*found.shape[:2], *self.each.shape[2:])

    def along(
        self, rows: Float[Tensor, "proj rows *space"], groups: Groups | None
    ) -> Float[Tensor, "proj outputs r"]:
        """Return the inner products with the vectors, summed over the rows of each group."""
        if flat_rows(rows).shape[2] != self.each.shape[2:].numel():
            raise ValueError(
                f"left must have vectors of the output's shape {list(rows.shape[2:])}, "
                f"got {list(self.each.shape[2:])}"
            )
        found = torch.einsum("pbd,brd->pbr", flat_rows(rows), self._flat)
        return found if groups is None else groups.summed(found)

    @property
    def _flat(self) -> Float[Tensor, "rows r size"]:
        return self.each.reshape(*self.each.shape[:2], self.each.shape[2:].numel())


def root(name: str, metric: Any) -> Tensor | None:
    """Return L of the metric :math:`L L^T`, its diagonal where weights are given.

    Raises:
        ValueError: If the metric, which messages call ``name``, is not positive.
    """
    if metric is None:
        return None
    given = torch.as_tensor(metric).detach()
    given = given if given.is_floating_point() and given.dtype.itemsize >= 4 else given.float()
    if given.ndim == 1 and bool((given >= 0).all()) and bool(given.isfinite().all()):
        return given.sqrt()
    if given.ndim == 2 and given.shape[0] == given.shape[1] and torch.allclose(given, given.T):
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(given)
        if not int(failed):
            return factor
    raise ValueError(
        f"{name} must be weights >= 0 or a positive definite matrix, got {list(given.shape)}"
    )
