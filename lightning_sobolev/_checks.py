"""Errors that name the argument, what was expected and what came."""

import math


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise unless a condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {got!r}")


def require_positive(name: str, value: object) -> None:
    """Raise unless a value is a finite number above zero."""
    is_positive = isinstance(value, int | float) and 0.0 < value < math.inf
    require(is_positive and not isinstance(value, bool), name, "a positive number", value)
