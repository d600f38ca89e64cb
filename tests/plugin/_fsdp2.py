"""Trains a sharded student on the CPU; run by two processes, prints its weights from the first."""

import sys

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import QUIET, points


class Sharded(Regressor):
    def configure_model(self):
        if self.trainer.world_size > 1:
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        x, y = (part[self.global_rank :: self.trainer.world_size] for part in batch)
        return mse_loss(self.net(x), y)


def main(devices):
    every = {"projection": "basis", "num_projections": None}
    terms = [SobolevTerm(**every), SobolevTerm(order=2, **every)]
    used = SobolevCallback(mlp(seed=7), SobolevSpec(terms=terms), module="net")
    strategy = (
        ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        if devices == 2
        else "auto"
    )
    options = {
        **QUIET,
        "devices": devices,
        "strategy": strategy,
        "max_epochs": 1,
        "precision": "32-true",
    }
    module = Sharded()
    trainer = L.Trainer(callbacks=[used], use_distributed_sampler=False, **options)
    trainer.fit(module, points())
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
    if trainer.is_global_zero:
        flat = torch.cat([p.detach().reshape(-1) for p in full])
        print("WEIGHTS", *map(repr, flat.tolist()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
