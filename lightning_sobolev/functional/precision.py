"""In which precision the derivative is taken."""

from typing import Literal, get_args

import torch

InnerPrecision = Literal["bf16-mixed"]
"""Lightning's word: bfloat16 where autocast deems it safe, weights and results as they are."""


def check_inner_precision(precision: str | None) -> None:
    """Refuse a precision in which derivatives cannot be taken.

    float16 is none: its inner derivatives underflow, and the scaler that would save them sees the
    last backward pass alone.

    Args:
        precision: None for the network's own, or one of :data:`InnerPrecision`.

    Raises:
        ValueError: If it is another word.
    """
    if precision is not None and precision not in get_args(InnerPrecision):
        raise ValueError(f"inner_precision must be None or 'bf16-mixed', got {precision!r}")


def inner_autocast(device_type: str, precision: InnerPrecision | None) -> torch.autocast:
    """Return the context in which a network is called for its derivative.

    What is called inside remembers the type of every operation, so that backward passes through it
    need no context of their own. Tensors in float64 stay what they are.

    Args:
        device_type: Where the network is.
        precision: None switches autocast off, whatever surrounds the call.

    Returns:
        The context manager.
    """
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision is not None)
