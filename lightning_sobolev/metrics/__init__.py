"""Metrics that add up over batches and processes."""

from lightning_sobolev.metrics.derivatives import DerivativeCosine, DerivativeNMSE
from lightning_sobolev.metrics.policy import ActionDisagreement, PolicyKL
from lightning_sobolev.metrics.time_space import TimeSpaceError
from lightning_sobolev.metrics.values import ValueNMSE

__all__ = [
    "ActionDisagreement", "DerivativeCosine", "DerivativeNMSE", "PolicyKL", "TimeSpaceError",
    "ValueNMSE",
]  # fmt: skip
