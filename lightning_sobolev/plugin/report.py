"""What is told of a step: logged, or warned of once.

Note [cost of a logged number]
    ``self.log`` takes a fifth of a small network's step for three numbers (measured). Here it runs
    for the first batch of an epoch; afterwards its metric takes the value directly.
"""

import warnings
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_sobolev.loss.balance import Balanced
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.loss.report import Report

_HOOK = "training_step"


def log_key(stage: str, name: str) -> str:
    """Return the name under which the plugin logs something; docs/metrics.md explains each."""
    return f"{stage}/sobolev/{name}"


def log_step(module: LightningModule, name: str, value: Tensor, batch_size: int) -> None:
    """Log a scalar of a training step, as ``module.log(name, value, batch_size=...)`` does."""
    trainer: Any = module._trainer
    results: Any = getattr(trainer, "_results", None)
    metric = results.get(f"{_HOOK}.{name}") if isinstance(results, dict) else None
    # What is not as expected, in some other release of Lightning, takes the documented way.
    known = metric is not None and hasattr(results, "update_metrics")
    if known and type(module).log is LightningModule.log and trainer.fit_loop.epoch_loop.batch_idx:
        results.update_metrics(f"{_HOOK}.{name}", value, batch_size)
    else:
        module.log(name, value, batch_size=batch_size)


class Reporter:
    """Tells what came of each step; a warning is given once."""

    def __init__(self, loss: SobolevLoss) -> None:
        self._loss = loss
        self._warned: set[str] = set()
        self._balanced = [t for t in loss.spec.terms if isinstance(t.weight, Balanced)]

    def tell(self, module: LightningModule, report: Report) -> None:
        """Log the terms and counts of one step, and warn where a term teaches nothing."""
        size = report.size
        for term in self._balanced:
            if term.key in report.terms:
                weight = report.weights[term.key]
                module.log(log_key("train", f"{term.key}_weight"), weight, batch_size=size)
        for key, value in report.terms.items():
            log_step(module, f"train/sobolev/{key}", value.detach(), size)
        for key, rows in report.unknown.items():
            module.log(log_key("train", f"{key}_unknown_rows"), rows.float(), batch_size=size)
        for key, count in report.skipped.items():
            name = log_key("train", f"{key}_skipped_rows")
            module.log(name, count.float(), batch_size=size)
            left_out = "rows whose target is NaN or Inf are left out; counted in"
            self._warn_if(count, f"term {key!r}: {left_out} {name}")
        for key, known in report.any_known.items():
            self._warn_if(~known, f"term {key!r}: no row of this batch has a known target")
        for key, vanishes in report.vanishes.items():
            self._warn_if(vanishes, f"term {key!r}: {_VANISHES}")

    def _warn_if(self, condition: Tensor, text: str) -> None:
        if text not in self._warned:  # what was said once is not looked at again
            judge = lambda number: self.warn_once(text) if number else None  # noqa: E731
            self._loss.checks.settle([(condition.float(), judge)])

    def warn_once(self, text: str) -> None:
        """Warn unless the same was said before."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=2)


_VANISHES = (
    "the student's second derivative is exactly zero on this batch; with piecewise-linear "
    "activations (ReLU and its kin) an order-2 term trains nothing. Use a smooth activation: "
    "tanh, SiLU, GELU, softplus"
)
