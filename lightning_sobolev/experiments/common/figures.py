"""Figures that are written whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sobolev._files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float) -> "Figure":
    """Return a figure of some inches, whose parts find their places themselves."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure; the path ends in the format."""
    with whole(path) as writing:
        figure.savefig(writing, dpi=120, format=path.suffix.removeprefix("."))
    return path
