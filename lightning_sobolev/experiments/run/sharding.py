"""Sharding of a network for Lightning's ``ModelParallelStrategy``, and its undoing."""

from collections.abc import Callable

import lightning.pytorch as pl
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(net: nn.Module, mesh: DeviceMesh | None) -> None:
    """Split the parameters of ``net`` over the data-parallel processes of ``mesh``.

    Does nothing without a mesh, which is every strategy but ``ModelParallelStrategy``. May be
    called again, as Lightning does for every stage.

    Args:
        net: The network, changed in place.
        mesh: The strategy's mesh.
    """
    if mesh is not None and not isinstance(net, FSDPModule):
        fully_shard(net, mesh=mesh["data_parallel"])


def whole(
    module: pl.LightningModule, build: Callable[[], pl.LightningModule]
) -> pl.LightningModule:
    """Return a module that one process can use alone; all processes must call this.

    Args:
        module: A module that may be sharded.
        build: Builds it anew.

    Returns:
        The module itself, or a copy that has all the weights on the first process.
    """
    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        return module
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(module, options=options)
    copy = build()
    if weights:  # empty on all processes but the first
        copy.load_state_dict(weights)
    return copy.to(module.device)
