"""How well projected derivatives are matched."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._types import InRows
from lightning_sobolev.functional.discrepancies import check_shapes, cosine
from lightning_sobolev.metrics._sums import MeanMetric, SumMetric


class DerivativeNMSE(SumMetric):
    r"""Squared error of the derivative, divided by the square of the target derivative.

    .. math:: \sum (s - t)^2 \,/\, \sum t^2

    over all projections, rows and elements seen. 1 is the score of a derivative of zero. With all
    basis projections the ratio is exact, with random ones an estimate of it. NaN entries of the
    target are not known and are left out.

    Example:
        >>> metric = DerivativeNMSE()
        >>> metric.update(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 4.0]]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    error: Tensor
    energy: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("error", "energy", **kwargs)

    def update(self, student_rows: InRows, target_rows: InRows) -> None:
        """Take in projected derivatives of one batch, both with the same projections."""
        check_shapes(student_rows, target_rows, "target_rows")
        known = ~target_rows.isnan()
        error = torch.where(known, student_rows - target_rows, 0.0)
        target = torch.where(known, target_rows, 0.0)
        self._add(
            error=error.square().sum(dtype=torch.float64),
            energy=target.square().sum(dtype=torch.float64),
        )

    def compute(self) -> Float[Tensor, ""]:
        """Return the ratio."""
        return self.error / self.energy


class DerivativeCosine(MeanMetric):
    r"""Mean over projections and rows of the cosine between student's and target's derivative.

    Where both are zero it counts as 1, where one is as 0. Entries at which the target is NaN are
    not known and are left out; rows without a known entry are not counted.

    Example:
        >>> metric = DerivativeCosine()
        >>> metric.update(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]))
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, student_rows: InRows, target_rows: InRows) -> None:
        """Take in projected derivatives of one batch, both with the same projections."""
        check_shapes(student_rows, target_rows, "target_rows")
        known = ~target_rows.isnan()
        ours, theirs = (torch.where(known, rows, 0.0) for rows in (student_rows, target_rows))
        counted = known.flatten(2).any(-1) if known.dim() > 2 else known
        total = torch.where(counted, 1 - cosine(ours, theirs), 0.0).sum(dtype=torch.float64)
        self._add(total=total, count=counted.sum())
