"""How far a function is from another in a norm of time and space."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from lightning_sobolev.functional.norms import Derivatives, TimeSpaceNorm
from lightning_sobolev.functional.quadrature import Quadrature


class TimeSpaceError(Metric):
    """Norm of the error, divided by the norm of the target; 1 is a student that is zero.

    Adds up over rows of a quadrature, that is over times: a batch holds whole rows, each time
    with all its points of space. All rows of the quadrature must come by, once.

    Args:
        norm: The norm.
        **kwargs: What ``torchmetrics.Metric`` takes.

    Example:
        >>> from lightning_sobolev.functional import gauss_legendre
        >>> grid = gauss_legendre([(0.0, 1.0), (0.0, 1.0)], 4)
        >>> target = {(0, 0): grid.points[..., 1]}
        >>> metric = TimeSpaceError(TimeSpaceNorm(time_exponent=float("inf")))
        >>> metric.update({(0, 0): 1.5 * target[0, 0]}, target, grid)
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    error: Tensor
    target: Tensor

    def __init__(self, norm: TimeSpaceNorm, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = norm
        self._is_maximum = math.isinf(norm.time_exponent)
        for name in ("error", "target"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="max" if self._is_maximum else "sum")

    def update(self, student: Derivatives, target: Derivatives, quadrature: Quadrature) -> None:
        """Take in derivatives by index at some times, those that the quadrature holds."""
        needed = self.norm.indices(quadrature.points.shape[-1] - 1)
        if missing := [index for index in needed if index not in student]:
            raise ValueError(f"student must hold {list(needed)}, got none of {missing}")
        theirs = {index: target[index].double() for index in needed if index in target}
        error = {index: student[index].double() - known for index, known in theirs.items()}
        self.error = self._joined(self.error, error, quadrature)
        self.target = self._joined(self.target, theirs, quadrature)

    def _joined(self, before: Tensor, derivatives: Derivatives, quadrature: Quadrature) -> Tensor:
        slices = self.norm.slice_norms(derivatives, quadrature).detach()
        if self._is_maximum:
            return torch.maximum(before, slices.max())
        powers = slices.pow(self.norm.time_exponent)
        return before + (quadrature.time_weights.double() * powers).sum()

    def compute(self) -> Float[Tensor, ""]:
        """Return the ratio of the norms."""
        ratio = self.error / self.target
        return ratio if self._is_maximum else ratio.pow(1 / self.norm.time_exponent)
