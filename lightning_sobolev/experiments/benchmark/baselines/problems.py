"""What every method is given: the same points in the same units."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sobolev.experiments.regression.data import LandscapeDataModule

NUM_TEST_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One function, known at some random points of its domain.

    Args:
        function: Name of the test function.
        dim: Number of inputs.
        points: Number of points.
        seed: Of the points, and of the method.
    """

    function: str
    dim: int
    points: int
    seed: int

    def table(self) -> dict[str, Tensor]:
        """Return points, values and derivatives in float64, in standard units.

        Every input and the value have zero mean and unit deviation over the training points.
        """
        return self._data().train_points.columns

    def test_table(self) -> dict[str, Tensor]:
        """Return the test points, which fill the domain evenly, in the same units."""
        return self._data().test_points().columns

    def _data(self) -> LandscapeDataModule:
        return LandscapeDataModule(
            self.function,
            self.points,
            dim=self.dim,
            seed=self.seed,
            num_test_points=NUM_TEST_POINTS,
            dtype=torch.float64,
        )
