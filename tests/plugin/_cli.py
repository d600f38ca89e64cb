"""What a YAML file for LightningCLI names by class_path."""

import lightning.pytorch as L
from torch import Tensor, nn

from tests.plugin._students import mlp
from tests.plugin._trainers import points


class Teacher(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.net = mlp(seed=seed)

    def forward(self, x):
        return self.net(x)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return points()


def bowl(x: Tensor) -> Tensor:
    return x.square().sum(1)
