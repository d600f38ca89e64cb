"""The student's calls: observed while a step runs, and made once more where a term needs it."""

from lightning_sobolev.observe.options import ObserveOptions

__all__ = ["ObserveOptions"]
