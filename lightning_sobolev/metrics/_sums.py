"""What all metrics share: named sums in float64.

Sums over many batches lose digits in float32, and a mean and its spread must not cancel. States are
replaced, never written to: one created under ``inference_mode`` refuses to be written to outside.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """A metric whose states are sums, so that it adds up over batches and processes."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, *names: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in names:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, **parts: Tensor) -> None:
        for name, part in parts.items():
            setattr(self, name, getattr(self, name) + part.detach().double())


class MeanMetric(SumMetric):
    """A mean of what was counted."""

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("total", "count", **kwargs)

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count
