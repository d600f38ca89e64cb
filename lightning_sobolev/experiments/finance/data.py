"""States of a market with one simulated payoff each, as batches."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.experiments.common.tables import TableDataModule
from lightning_sobolev.experiments.finance.baskets import BasketCall, Model
from lightning_sobolev.loading import Table
from lightning_sobolev.standardization import Standardizer

# Streams of random numbers that have nothing in common with those of training, whatever its seed.
_VALIDATION, _TEST = 2**40, 2**40 + 1


class BasketDataModule(TableDataModule):
    """Noisy payoffs and pathwise derivatives to train on, true prices and deltas to test on.

    A batch is ``{"x": [batch, assets], "y": [batch], "dydx": [batch, assets]}`` in the units in
    which the training states and payoffs have zero mean and unit deviation; test points are in the
    same units.

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

    Raises:
        ValueError: If a count is too small or the model is unknown.
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
        counts = {
            "num_samples": num_samples,
            "num_test_points": num_test_points,
            "num_validation_points": num_validation_points,
        }
        for name, count in counts.items():
            if count < 2:
                raise ValueError(f"{name} must be at least 2, got {count}")
        drawn = torch.Generator().seed() if seed is None else seed
        super().__init__(batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=drawn)
        self.call = BasketCall.drawn(model, assets, seed=market_seed)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.num_test_points, self.num_validation_points = num_test_points, num_validation_points
        generator = torch.Generator().manual_seed(self.seed)
        states = self.call.states(num_samples, generator)
        payoffs, derivatives = self.call.payoffs(states, generator)
        self.units = Standardizer.fit(states, payoffs)
        self._training = self._table(states, payoffs, derivatives)

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
        return self._table(states, *self.call.prices(states))

    def _table(
        self,
        x: Float[Tensor, "points assets"],
        y: Float[Tensor, " points"],
        dydx: Float[Tensor, "points assets"],
    ) -> Table:
        units = self.units
        columns = {
            "x": units.inputs(x),
            "y": units.targets(y),
            "dydx": units.jacobian(dydx),
        }
        return Table({name: column.to(self.dtype) for name, column in columns.items()})
