"""In which precision the derivative is taken."""

from typing import Literal

import torch

InnerPrecision = Literal["float32", "step", "bf16-mixed"]
"""At least float32; that of the training step; or Lightning's word for bfloat16 where autocast
deems it safe, weights and results as they are.

There is no float16: its inner derivatives underflow, and the scaler that would save them sees the
last backward pass alone.
"""


def inner_autocast(device_type: str, precision: InnerPrecision) -> torch.autocast:
    """Return the context in which a network is called for its derivative.

    What is called inside remembers the type of every operation, so that backward passes through it
    need no context of their own. All but ``"bf16-mixed"`` switch autocast off. Tensors in float64
    stay what they are.
    """
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
