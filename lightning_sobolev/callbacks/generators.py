"""The generators that everybody shares, in the checkpoint: dropout goes on as it would have."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class KeepGenerators(Callback):
    """Saves the global generators of torch, CUDA, numpy and Python, and sets them on resuming.

    Lightning saves none of them, so a resumed run draws other dropout masks than an uninterrupted
    one. The projections of a :class:`~lightning_sobolev.SobolevCallback` need no help: they are a
    function of seed, rank and counter. Each process gets its own back, if there are as many as
    there were. Worker processes of a loader have their own, which nobody can save.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] = []

    @override
    def state_dict(self) -> dict[str, Any]:
        own = _state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"processes": [own]}
        processes: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(processes, own)
        return {"processes": processes}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["processes"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(trainer)  # before the loader of a new epoch draws its order

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx > 0:  # in the middle of an epoch: behind what its loader has drawn once more
            self._restore(trainer)
        self._loaded = []

    def _restore(self, trainer: Trainer) -> None:
        if len(self._loaded) == trainer.world_size:
            _set(self._loaded[trainer.global_rank])


def _state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
    }


def _set(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
