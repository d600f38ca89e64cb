"""A solution of a differential equation at points of time and space, with its derivatives."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.tables import TableDataModule
from lightning_sobolev.experiments.pde.solutions import SOLUTIONS
from lightning_sobolev.functional.mixed import Index, mixed_derivatives
from lightning_sobolev.functional.norms import TimeSpaceNorm
from lightning_sobolev.functional.quadrature import Quadrature, gauss_legendre, monte_carlo
from lightning_sobolev.loading import Table

INDICES: tuple[Index, ...] = TimeSpaceNorm(time_order=2, space_order=2).indices()


class PDEDataModule(TableDataModule):
    """Training points with exact derivatives, and a dense Gauss-Legendre grid to test on.

    A row is a time with all its points of space, so that a norm can be taken of any batch. Columns
    are those that :func:`quadrature_of` and :func:`derivatives_of` read.

    Args:
        problem: ``heat`` or ``burgers``.
        num_times: Times of the training points.
        num_places: Points of space at each time.
        rule: ``monte_carlo`` draws them at random, ``gauss_legendre`` takes a grid.
        batch_size: Times of a training batch; all of them when there are fewer.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of the training points and of the order. None takes one from the system.
        num_test_nodes: Nodes of the test grid on each axis.
        dtype: Floating-point type of the batches; torch's default when None.
    """

    def __init__(
        self,
        problem: str,
        *,
        num_times: int = 8,
        num_places: int = 16,
        rule: Literal["monte_carlo", "gauss_legendre"] = "monte_carlo",
        batch_size: int = 1024,
        steps_per_epoch: int = 1000,
        seed: int | None = 0,
        num_test_nodes: int = 48,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_size, steps_per_epoch, seed, dtype)
        require(problem in SOLUTIONS, "problem", f"one of {tuple(SOLUTIONS)}", problem)
        known = rule in ("monte_carlo", "gauss_legendre")
        require(known, "rule", "'monte_carlo' or 'gauss_legendre'", rule)
        self.solution = SOLUTIONS[problem]()
        self.num_test_nodes = num_test_nodes
        if rule == "monte_carlo":
            generator = torch.Generator().manual_seed(self.seed)
            points = monte_carlo(self.solution.box, num_times, num_places, generator=generator)
        else:
            points = gauss_legendre(self.solution.box, [num_times, num_places])
        self._training = self._exact(points)

    def training_points(self) -> Table:
        """Return the training points."""
        return self._training

    def test_points(self) -> Table:
        """Return the test grid, the same for every seed."""
        return self._exact(gauss_legendre(self.solution.box, self.num_test_nodes))

    def validation_points(self) -> Table:
        """Return another grid, to choose settings by."""
        return self._exact(gauss_legendre(self.solution.box, self.num_test_nodes - 1))

    def _exact(self, quadrature: Quadrature) -> Table:
        found = mixed_derivatives(self.solution.value, quadrature.points, INDICES)
        columns = {
            "points": quadrature.points,
            "time_weights": quadrature.time_weights,
            "space_weights": quadrature.space_weights,
            "derivatives": torch.stack([found[index].detach() for index in INDICES], -1),
        }
        return self.table(columns)


def quadrature_of(batch: Mapping[str, Tensor]) -> Quadrature:
    """Return the quadrature that a batch is."""
    return Quadrature(batch["points"], batch["time_weights"], batch["space_weights"])


def derivatives_of(batch: Mapping[str, Tensor]) -> dict[Index, Tensor]:
    """Return the solution's derivatives in a batch, by index."""
    return dict(zip(INDICES, batch["derivatives"].unbind(-1), strict=True))
