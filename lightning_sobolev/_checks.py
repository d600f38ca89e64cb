"""Errors that name the argument, what was expected and what came."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise unless a condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {got!r}")
