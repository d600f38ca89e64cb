"""How well values are matched."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._types import Values
from lightning_sobolev.functional.discrepancies import check_shapes
from lightning_sobolev.metrics._sums import SumMetric


class ValueNMSE(SumMetric):
    r"""Mean squared error of the value, divided by the variance of the target.

    .. math:: \sum (y - t)^2 \,/\, \sum (t - \bar t)^2

    over all rows and outputs seen, with one mean :math:`\bar t` for all outputs. 1 is the score of
    the best constant. NaN entries of the target are not known and are left out.

    Example:
        >>> metric = ValueNMSE()
        >>> metric.update(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    error: Tensor
    total: Tensor
    total_squares: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("error", "total", "total_squares", "count", **kwargs)

    def update(self, student: Values, target: Values) -> None:
        """Take in values of one batch."""
        check_shapes(student, target, "target")
        known = ~target.isnan()
        error = torch.where(known, student.double() - target.double(), 0.0)
        values = torch.where(known, target.double(), 0.0)
        self._add(
            error=error.square().sum(),
            total=values.sum(),
            total_squares=values.square().sum(),
            count=known.sum(),
        )

    def compute(self) -> Float[Tensor, ""]:
        """Return the ratio."""
        return self.error / (self.total_squares - self.total.square() / self.count)
