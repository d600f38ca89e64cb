"""Which axes of an array of derivatives belong to which input and output."""

import itertools
from collections.abc import Mapping, Sequence

import torch

from lightning_sobolev._checks import require
from lightning_sobolev.label_files.sources import Source

STANDARD = {"jacobian": "y x", "hessian": "y x x"}
"""Layouts of arrays with these names where nothing else is said."""


def names_in(layout: Mapping[str, str]) -> set[str]:
    """Return the names of all inputs and outputs in layouts."""
    return set(" ".join(layout.values()).replace("->", " ").split())


def axes_of(name: str, layout: str, sources: Mapping[str, Source]) -> tuple[int, ...]:
    """Return the axes of a file's array in the order of the batch, behind its rows.

    Raises:
        ValueError: If its shape is not that of the layout; says so where the reversed one fits.
    """
    file, arrow, batch = layout.partition("->")
    stored, wanted = file.split(), (batch if arrow else file).split()
    fits = bool(stored) and sorted(stored) == sorted(wanted)
    require(fits, f"layout[{name!r}]", "like 'y x' or 'x y -> y x'", layout)
    shapes = {axis: sources[axis].shape[1:] for axis in stored}
    got = sources[name].shape
    sizes = _sizes(stored, wanted[0], shapes, got)
    if sizes is None:
        expected = ", ".join(f"*{axis} = {list(shapes[axis])}" for axis in stored)
        hint, turned = "", stored[::-1]
        if _sizes(turned, wanted[0], shapes, got) is not None:
            say = {name: f"{' '.join(turned)} -> {' '.join(wanted)}"}
            hint = f", which is transposed: say layout={say}"
        where = sources[name].where
        text = f"must have the shape [rows, {expected}] for {name!r}, got {list(got)}"
        raise ValueError(f"{where} {text}{hint}")
    ends = itertools.accumulate(sizes, initial=1)
    parts = [
        (axis, range(*span)) for axis, span in zip(stored, itertools.pairwise(ends), strict=True)
    ]
    # A name that stands twice keeps its order.
    taken = [parts.pop([axis for axis, _ in parts].index(axis)) for axis in wanted]
    return tuple(place for _, places in taken for place in places)


def _sizes(
    stored: Sequence[str], output: str, shapes: Mapping[str, tuple[int, ...]], got: tuple[int, ...]
) -> list[int] | None:
    """Return how many axes each name has in an array, or None where its shape does not fit."""
    shape = shapes[output]
    single = [(), (1,)] if torch.Size(shape).numel() == 1 else []
    for choice in [shape, *single]:
        parts = [choice if axis == output else shapes[axis] for axis in stored]
        if sum(parts, ()) == got[1:]:
            return [len(part) for part in parts]
    return None
