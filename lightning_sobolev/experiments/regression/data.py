"""Points of a classical test function with exact values and gradients."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.experiments.common.tables import TableDataModule
from lightning_sobolev.experiments.regression.landscapes import Landscape, landscape
from lightning_sobolev.loading import Table
from lightning_sobolev.standardization import Standardizer


class LandscapeDataModule(TableDataModule):
    """Random training points and many test points of one test function.

    A batch is ``{"x": [batch, dim], "y": [batch], "dydx": [batch, dim], "hessian": [batch, dim,
    dim]}`` in the units in which the training points have zero mean and unit deviation; test points
    are in the same units.

    Args:
        function: Name of the function, see ``functional.landscapes.LANDSCAPES``.
        num_points: Training points, drawn uniformly from the function's domain.
        dim: Dimension of the input.
        batch_size: Points of a training batch; all of them when there are fewer.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of the training points and of their order. None takes one from the system.
        num_test_points: Points of a scrambled Sobol sequence, the same for every seed.
        test_seed: Of the scrambling; a search over settings looks at other points than the test.
        dtype: Floating-point type of the batches; torch's default when None.

    Raises:
        ValueError: If a count is too small or the function is unknown.
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
        super().__init__(
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            seed=torch.Generator().seed() if seed is None else seed,
        )
        # One point has no deviation to standardize by.
        for name, got in (("num_points", num_points), ("num_test_points", num_test_points)):
            if got < 2:
                raise ValueError(f"{name} must be at least 2, got {got}")
        self.landscape: Landscape = landscape(function)
        self.low, self.high = _box(self.landscape, dim)
        self.num_points = num_points
        self.num_test_points, self.test_seed = num_test_points, test_seed
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.units, self.train_points = self._draw()

    def _draw(self) -> tuple[Standardizer, Table]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.num_points, len(self.low))
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        x = self.low + (self.high - self.low) * uniform
        units = Standardizer.fit(x, self.landscape.value(x))
        return units, self._table(x, units)

    def _table(self, x: Float[Tensor, "points dim"], units: Standardizer) -> Table:
        function = self.landscape
        columns = {
            "x": units.inputs(x),
            "y": units.targets(function.value(x)),
            "dydx": units.jacobian(function.gradient(x)),
            "hessian": units.hessian(function.hessian(x)),
        }
        return Table({name: column.to(self.dtype) for name, column in columns.items()})

    def test_points(self) -> Table:
        """Return the test points; they fill the domain evenly in any dimension."""
        return self._spread(self.test_seed)

    def validation_points(self) -> Table:
        """Return as many other points, to choose settings by."""
        return self._spread(self.test_seed + 1)

    def _spread(self, seed: int) -> Table:
        sobol = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
            len(self.low), scramble=True, seed=seed
        )
        unit = sobol.draw(self.num_test_points, dtype=torch.float64)
        return self._table(self.low + (self.high - self.low) * unit, self.units)

    def training_points(self) -> Table:
        """Return the training points."""
        return self.train_points


def _box(function: Landscape, dim: int) -> tuple[Tensor, Tensor]:
    bounds = torch.as_tensor(function.bounds(dim), dtype=torch.float64)
    return bounds[:, 0], bounds[:, 1]
