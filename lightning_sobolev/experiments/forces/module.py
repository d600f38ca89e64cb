"""Fit energies of atoms: an ordinary LightningModule.

Forces are minus the derivative with respect to the positions, the network's input; a
``SobolevCallback`` teaches them from outside.
"""

from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchmetrics import MeanAbsoluteError

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.module import NetModule
from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.forces.data import ForcesDataModule
from lightning_sobolev.experiments.forces.schnet import SchNet
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.plugin import SobolevCallback


class ForceFieldModule(NetModule):
    """Squared energy error in units of the training energies' standard deviation.

    Logs ``train/loss``; ``val/`` and ``test/energy_mae`` (eV) and ``force_mae`` (eV/Å, mean over
    atoms and components). The network's buffers ``shift`` and ``scale`` take mean and standard
    deviation of the training energies, so that it answers in eV and a checkpoint holds all of it.

    Args:
        net: Maps positions in Å to energies in eV.
        optimizer: Makes the optimizer of the parameters.
        scheduler: Makes the schedule of its learning rate.
        energy_weight: Factor of the loss. With 0 forces alone are learned; then the constant of
            the energy, which no force tells, is set to the training frames' mean before a test.
    """

    net: SchNet

    def __init__(
        self,
        net: SchNet,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        energy_weight: float = 1.0,
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        require(energy_weight >= 0, "energy_weight", "at least 0", energy_weight)
        self.energy_weight = energy_weight
        names = [f"{stage}_{of}_mae" for stage in ("val", "test") for of in ("energy", "force")]
        self.errors = nn.ModuleDict({name: MeanAbsoluteError() for name in names})

    def on_fit_start(self) -> None:
        """Take the unit of energy from the training frames."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        forces_are_taught = any(isinstance(callback, SobolevCallback) for callback in callbacks)
        if self.energy_weight == 0 and not forces_are_taught:
            raise ValueError(
                "energy_weight must be above 0 where no SobolevCallback teaches forces, got 0: "
                "nothing would be learned"
            )
        mean, deviation = self._data().energy_statistics()
        self.net.shift.fill_(mean)
        self.net.scale.fill_(deviation)

    def training_step(self, batch: dict[str, Tensor], *_: Any) -> Tensor:
        """Return the squared error of the energies."""
        energy = self.net(batch["positions"])
        loss = mse_loss(energy / self.net.scale, batch["energy"] / self.net.scale)
        self.log_loss(loss, len(energy))
        return self.energy_weight * loss

    @torch.no_grad()
    def on_validation_start(self) -> None:
        """Set the constant of the energy where nothing taught it."""
        if self.energy_weight == 0:
            columns = self._data().training_points().columns
            positions = columns["positions"].to(self.device)
            energies = torch.cat([self.net(part) for part in torch.split(positions, 256)])
            self.net.shift += (columns["energy"].to(self.device) - energies).mean()

    on_test_start = on_validation_start

    def validation_step(self, batch: dict[str, Tensor], *_: Any) -> None:
        """Compare energies and forces."""
        self._compare("val", batch)

    def test_step(self, batch: dict[str, Tensor], *_: Any) -> None:
        """Compare energies and forces."""
        self._compare("test", batch)

    def _compare(self, stage: str, batch: dict[str, Tensor]) -> None:
        jet = tape_jet(self.net, batch["positions"])
        gradient = jet.vjp(torch.ones_like(jet.value)[None])[0]
        pairs = {"energy_mae": (jet.value, "energy"), "force_mae": (gradient, "gradient")}
        for name, (ours, key) in pairs.items():
            error: Any = self.errors[f"{stage}_{name}"]
            error.update(ours.detach().contiguous(), batch[key])
            self.log(f"{stage}/{name}", error, batch_size=len(batch[key]))

    def _data(self) -> ForcesDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        right = isinstance(data, ForcesDataModule)
        require(right, "data of ForceFieldModule", "a ForcesDataModule", type(data).__name__)
        return cast(ForcesDataModule, data)
