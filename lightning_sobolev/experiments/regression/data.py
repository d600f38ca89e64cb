"""Points of a classical test function with exact values and derivatives."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.experiments.common.tables import TableDataModule, check_counts
from lightning_sobolev.experiments.regression.landscapes import landscape
from lightning_sobolev.loading import Table
from lightning_sobolev.standardization import Standardizer


class LandscapeDataModule(TableDataModule):
    """Random training points and many test points of one test function.

    A batch is ``{"x": [batch, dim], "y": [batch], "dydx": [batch, dim], "hessian": [batch, dim,
    dim]}`` in the units in which the training points have zero mean and unit standard deviation;
    test points are in the same units.

    Args:
        function: Name of the function, a key of ``landscapes.LANDSCAPES``.
        num_points: Training points, drawn uniformly from the function's domain.
        dim: Dimension of the input.
        batch_size: Points of a training batch; all of them when there are fewer.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of the training points and of their order. None takes one from the system.
        num_test_points: Points of a scrambled Sobol sequence, the same for every seed.
        test_seed: Of the scrambling; a search over settings looks at other points than the test.
        dtype: Floating-point type of the batches; torch's default when None.
    """

    def __init__(
        self,
        function: str,
        num_points: int,
        *,
        dim: int = 2,
        batch_size: int = 100,
        steps_per_epoch: int = 1000,
        seed: int | None = 0,
        num_test_points: int = 4096,
        test_seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_size, steps_per_epoch, seed, dtype)
        # One point has no standard deviation to divide by.
        check_counts(2, num_points=num_points, num_test_points=num_test_points)
        self.landscape = landscape(function)
        bounds = torch.as_tensor(self.landscape.bounds(dim), dtype=torch.float64)
        self.low, self.high = bounds.unbind(1)
        self.num_test_points, self.test_seed = num_test_points, test_seed
        generator = torch.Generator().manual_seed(self.seed)
        x = self._at(torch.rand(num_points, dim, generator=generator, dtype=torch.float64))
        self.units = Standardizer.fit(x, self.landscape.value(x))
        self.train_points = self._exact(x)

    def training_points(self) -> Table:
        """Return the training points."""
        return self.train_points

    def test_points(self) -> Table:
        """Return the test points; they fill the domain evenly in any dimension."""
        return self._spread(self.test_seed)

    def validation_points(self) -> Table:
        """Return as many other points, to choose settings by."""
        return self._spread(self.test_seed + 1)

    def _at(self, unit: Float[Tensor, "points dim"]) -> Float[Tensor, "points dim"]:
        return self.low + (self.high - self.low) * unit

    def _exact(self, x: Float[Tensor, "points dim"]) -> Table:
        value, gradient, hessian = self.landscape.derivatives(x)
        units = self.units
        columns = {"x": units.inputs(x), "y": units.targets(value)}
        columns |= {"dydx": units.jacobian(gradient), "hessian": units.hessian(hessian)}
        return self.table(columns)

    def _spread(self, seed: int) -> Table:
        sobol = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
            len(self.low), scramble=True, seed=seed
        )
        return self._exact(self._at(sobol.draw(self.num_test_points, dtype=torch.float64)))
