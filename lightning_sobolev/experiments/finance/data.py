"""States of a market with one simulated payoff each, as batches."""

import torch
from torch import Tensor

from lightning_sobolev.experiments.common.tables import TableDataModule, check_counts
from lightning_sobolev.experiments.finance.baskets import BasketCall, Model
from lightning_sobolev.loading import Table
from lightning_sobolev.standardization import Standardizer

# Streams of random numbers that have nothing in common with those of training, whatever its seed.
_VALIDATION, _TEST = 2**40, 2**40 + 1


class BasketDataModule(TableDataModule):
    """Noisy payoffs and pathwise derivatives to train on, true prices and deltas to test on.

    A batch is ``{"x": [batch, assets], "y": [batch], "dydx": [batch, assets]}`` in the units in
    which the training states and payoffs have zero mean and unit standard deviation; test points
    are in the same units.

    Args:
        model: ``bachelier`` or ``black_scholes``.
        num_samples: Training states, with one path each.
        assets: Assets in the basket.
        batch_size: States of a training batch.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of training states, paths and order. None takes one from the system.
        market_seed: Seed of shares, volatilities and correlations.
        num_test_points: Test states, the same for every seed.
        num_validation_points: States for choosing a learning rate, the same for every seed.
        dtype: Floating-point type of the batches; torch's default when None.
    """

    def __init__(
        self,
        model: Model,
        num_samples: int,
        *,
        assets: int = 7,
        batch_size: int = 256,
        steps_per_epoch: int = 1000,
        seed: int | None = 0,
        market_seed: int = 0,
        num_test_points: int = 2048,
        num_validation_points: int = 1024,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_size, steps_per_epoch, seed, dtype)
        check_counts(2, num_samples=num_samples, num_test_points=num_test_points)
        check_counts(2, num_validation_points=num_validation_points)
        self.call = BasketCall.drawn(model, assets, seed=market_seed)
        self.num_test_points, self.num_validation_points = num_test_points, num_validation_points
        generator = torch.Generator().manual_seed(self.seed)
        states = self.call.states(num_samples, generator)
        payoffs, derivatives = self.call.payoffs(states, generator)
        self.units = Standardizer.fit(states, payoffs)
        self._training = self._scaled(states, payoffs, derivatives)

    def training_points(self) -> Table:
        """Return training states, payoffs and pathwise derivatives."""
        return self._training

    def validation_points(self) -> Table:
        """Return states with true prices and deltas, to choose settings by."""
        return self._true(self.num_validation_points, _VALIDATION)

    def test_points(self) -> Table:
        """Return states with true prices and deltas."""
        return self._true(self.num_test_points, _TEST)

    def _true(self, count: int, seed: int) -> Table:
        states = self.call.states(count, torch.Generator().manual_seed(seed))
        return self._scaled(states, *self.call.prices(states))

    def _scaled(self, x: Tensor, y: Tensor, dydx: Tensor) -> Table:
        units = self.units
        columns = {"x": units.inputs(x), "y": units.targets(y), "dydx": units.jacobian(dydx)}
        return self.table(columns)
