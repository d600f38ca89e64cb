"""A quiet trainer on the CPU, and data that fit in one line."""

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "precision": "64-true",
}


def trainer(*callbacks, **changes):
    return L.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 1, **changes})


def fit(module, data, *callbacks, **changes):
    used = trainer(*callbacks, **changes)
    used.fit(module, data)
    return used


def fit_one_step(module, batch, *callbacks, **changes):
    return fit(module, as_loader([batch]), *callbacks, **changes)


def as_loader(batches):
    return DataLoader(batches, batch_size=None)


def points(size=24, dim=3, outputs=2, batch_size=8, seed=0):
    """A loader of (x, y) in float64, in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    y = torch.randn(size, outputs, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def weights(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
