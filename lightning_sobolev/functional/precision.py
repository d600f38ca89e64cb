"""In which precision the derivative is taken."""

from typing import Literal

InnerPrecision = Literal["float32", "step", "bf16-mixed"]
"""At least float32; that of the training step; or Lightning's word for bfloat16 where autocast
deems it safe, weights and results as they are.

There is no float16: its inner derivatives underflow, and the scaler that would save them sees the
last backward pass alone.
"""
