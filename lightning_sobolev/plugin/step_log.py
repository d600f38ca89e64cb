"""Logging at every step without what ``LightningModule.log`` does again at every step.

Note [cost of a logged number]
    ``self.log`` takes a fifth of a small network's step for three numbers (measured). Here it runs
    for the first batch of an epoch; afterwards its metric takes the value directly.
"""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

_HOOK = "training_step"


def key(stage: str, name: str) -> str:
    """Return the name under which the plugin logs something; docs/metrics.md explains each."""
    return f"{stage}/sobolev/{name}"


def log_step(module: LightningModule, name: str, value: Tensor, batch_size: int) -> None:
    """Log a scalar of a training step, as ``module.log(name, value, batch_size=...)`` does."""
    results: Any = getattr(module._trainer, "_results", None)
    metric = results.get(f"{_HOOK}.{name}") if isinstance(results, dict) else None
    # What is not as expected, in some other release of Lightning, takes the documented way.
    known = metric is not None and hasattr(results, "update_metrics")
    if known and _is_later_batch(module) and type(module).log is LightningModule.log:
        results.update_metrics(f"{_HOOK}.{name}", value, batch_size)
    else:
        module.log(name, value, batch_size=batch_size)


def _is_later_batch(module: LightningModule) -> bool:
    return module.trainer.fit_loop.epoch_loop.batch_idx > 0
