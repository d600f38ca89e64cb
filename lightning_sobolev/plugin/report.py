"""What is told of a step beside its terms: logged, or warned of once."""

import warnings
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_sobolev.loss.balance import Balanced
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.loss.report import Report


class Reporter:
    """Tells what there is beside the terms' size; a warning is given once."""

    def __init__(self, loss: SobolevLoss, module: LightningModule) -> None:
        self._loss, self._module = loss, module
        self._warned: set[str] = set()
        self.balanced = [t for t in loss.spec.terms if isinstance(t.weight, Balanced)]

    def tell(self, report: Report) -> None:
        """Log the counts and weights of one step, and warn where a term teaches nothing."""
        module, size = self._module, report.size
        for term in self.balanced:
            if term.key in report.terms:
                weight = report.weights[term.key]
                module.log(f"train/sobolev/{term.key}_weight", weight, batch_size=size)
        for key, rows in report.unknown.items():
            module.log(f"train/sobolev/{key}_unknown_rows", rows.float(), batch_size=size)
        for key, count in report.skipped.items():
            name = f"train/sobolev/{key}_skipped_rows"
            module.log(name, count.float(), batch_size=size)
            left_out = "rows whose target is NaN or Inf are left out; counted in"
            self._warn_if(count, f"term {key!r}: {left_out} {name}")
        for key, known in report.any_known.items():
            self._warn_if(~known, f"term {key!r}: no row of this batch has a known target")
        for key, vanishes in report.vanishes.items():
            self._warn_if(vanishes, f"term {key!r}: {_VANISHES}")

    def tell_validation(self, stage: str, report: Report) -> None:
        """Log the terms and cosines of one batch of validation or test."""
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        options["batch_size"] = report.size
        for key, value in report.terms.items():
            self._module.log(f"{stage}/sobolev/{key}", value.detach(), **options)
        for key, value in report.cosines.items():
            self._module.log(f"{stage}/sobolev/{key}_cosine", value, **options)

    def count_missing(self, is_missing: bool) -> None:
        """Log whether a step called the student; an epoch has their sum."""
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "reduce_fx": "sum"}
        self._module.log("train/sobolev/missing_steps", float(is_missing), batch_size=1, **options)

    def _warn_if(self, condition: Tensor, text: str) -> None:
        if text not in self._warned:  # what was said once is not looked at again
            judge = lambda number: self._warn_once(text) if number else None  # noqa: E731
            self._loss.checks.settle([(condition.float(), judge)])

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=2)


_VANISHES = (
    "the student's second derivative is exactly zero on this batch; with piecewise-linear "
    "activations (ReLU and its kin) an order-2 term trains nothing. Use a smooth activation: "
    "tanh, SiLU, GELU, softplus"
)
