"""Small networks and LightningModules that know nothing of derivatives."""

import lightning.pytorch as L
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from lightning_sobolev import SobolevCallback


def mlp(dim=3, outputs=2, width=8, seed=1, activation=nn.Tanh):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(dim, width), activation(), nn.Linear(width, outputs)
        ).double()


def callback(**options):
    return SobolevCallback(**{"teacher": mlp(seed=7), **options})


class Regressor(L.LightningModule):
    def __init__(self, net=None, lr=0.05):
        super().__init__()
        self.net = mlp() if net is None else net
        self.lr = lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return mse_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ManualRegressor(Regressor):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Silent(Regressor):
    """Has no loss of its own: what it learns, the derivative term taught it."""

    def __init__(self, net=None, lr=1.0):
        super().__init__(net, lr)

    def output(self, batch):
        return self.net(batch[0] if isinstance(batch, list | tuple) else batch)

    def training_step(self, batch, batch_idx):
        return 0.0 * self.output(batch).sum()


class SilentSelf(Silent):
    def output(self, batch):
        return self(batch[0])


class Checkpointed(nn.Module):
    def __init__(self, body, reentrant):
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


class Remembers(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        self.last = self.body(x)
        return self.last


class Adam(Regressor):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Learns(Regressor):
    """Its batches hold more than points and values: what a BatchTeacher reads."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


class Breaks(Regressor):
    def __init__(self, number=1):
        super().__init__()
        self.number = number

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == self.number:
            raise KeyError("a fault of the step itself")
        return loss
