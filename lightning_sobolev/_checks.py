"""Errors that name the argument, what was expected and what came."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise unless a condition holds.

    Args:
        condition: What must hold.
        name: The argument.
        expected: What it must be.
        got: What it is.

    Raises:
        ValueError: If it does not hold.
    """
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {got!r}")
