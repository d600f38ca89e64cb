"""Several processes: a network's parameters are split over them, and one of them goes on alone."""

from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(net: nn.Module, mesh: DeviceMesh | None) -> None:
    """Split the parameters of ``net`` over the data-parallel processes of a mesh, if there is one.

    May be called again, as Lightning does for every stage.
    """
    if mesh is not None and not isinstance(net, FSDPModule):
        fully_shard(net, mesh=mesh["data_parallel"])


def one_process(
    trainer: pl.Trainer, module: pl.LightningModule, build: Callable[[], pl.LightningModule]
) -> pl.LightningModule:
    """End the work of several processes, so that the first can test alone; all must call this."""
    if trainer.world_size == 1:
        return module
    if any(isinstance(part, FSDPModule) for part in module.modules()):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(module, options=options)
        module = build()
        if weights:  # empty on all processes but the first
            module.load_state_dict(weights)
    trainer.strategy.barrier()
    torch.distributed.destroy_process_group()
    return module
