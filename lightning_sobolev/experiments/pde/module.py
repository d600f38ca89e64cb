"""Fit a function of time and space in a norm that may treat the two differently."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev.experiments.common.module import NetModule
from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.pde.data import derivatives_of, quadrature_of
from lightning_sobolev.functional.mixed import mixed_derivatives
from lightning_sobolev.functional.norms import TimeSpaceNorm
from lightning_sobolev.functional.quadrature import check_box
from lightning_sobolev.metrics import TimeSpaceError


class PDEModule(NetModule):
    """The squared relative error in one norm, on batches of ``PDEDataModule``.

    Logs ``train/loss`` every ``log_every_n_steps``, and at test time ``test/NAME`` for every test
    norm: the error's norm divided by the solution's.

    Args:
        net: Maps ``[batch, axes]`` to ``[batch]``, for inputs of mean zero and unit standard
            deviation.
        optimizer: Makes the optimizer of the parameters; ``line_search`` is for batches of all
            points.
        scheduler: Makes the schedule of its learning rate.
        norm: What is trained in.
        test_norms: What is tested in, by name.
        box: ``(low, high)`` of every axis, time first; inputs are standardized by it.
    """

    center: Tensor
    deviation: Tensor

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        norm: TimeSpaceNorm,
        test_norms: Mapping[str, TimeSpaceNorm],
        box: Sequence[Sequence[float]] = ((0.0, 1.0), (0.0, 1.0)),
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        check_box(box)
        self.norm = norm
        low, high = torch.tensor([list(side) for side in box]).T
        self.register_buffer("center", (low + high) / 2)
        # The standard deviation of a uniform distribution.
        self.register_buffer("deviation", (high - low) / 12**0.5)
        self.errors = nn.ModuleDict({n: TimeSpaceError(norm) for n, norm in test_norms.items()})
        dim = len(box) - 1
        self.test_indices = tuple({i: None for n in test_norms.values() for i in n.indices(dim)})

    def forward(self, x: Float[Tensor, "batch axes"]) -> Float[Tensor, " batch"]:
        """Return the fitted values at points in the units of the box."""
        values: Tensor = self.net((x - self.center) / self.deviation)
        return values

    def training_step(self, batch: dict[str, Tensor], *_: Any) -> Tensor:
        """Return the squared relative error in the norm."""
        quadrature, target = quadrature_of(batch), derivatives_of(batch)
        indices = self.norm.indices(quadrature.points.shape[-1] - 1)
        student = mixed_derivatives(self, quadrature.points, indices)
        loss = self.norm.loss(student, target, quadrature)
        self.log_loss(loss, len(batch["points"]))
        return loss

    def test_step(self, batch: dict[str, Tensor], *_: Any) -> None:
        """Compare with the solution in every test norm."""
        student = mixed_derivatives(self, batch["points"], self.test_indices)
        for name, error in self.errors.items():
            assert isinstance(error, TimeSpaceError)
            error.update(student, derivatives_of(batch), quadrature_of(batch))
            self.log(f"test/{name}", error)
