"""One run of a study: what it is called, how it weighs derivatives, and its points."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sobolev import Balanced, Cosine, SobolevTerm, Standardizer
from lightning_sobolev.functional import LANDSCAPES, landscape, neighbor_derivatives

STEPS = 2000
METHODS = {
    "none": SobolevTerm(weight=0.0),
    "constant_0.1": SobolevTerm(weight=0.1),
    "constant_1": SobolevTerm(weight=1.0),
    "fading_1": SobolevTerm(weight=Cosine(1.0, 0.0, STEPS)),
    "balanced_0.1": SobolevTerm(weight=Balanced(0.1)),
    "balanced_1": SobolevTerm(weight=Balanced(1.0)),
    "elements_1": SobolevTerm(weight=1.0, normalize="elements"),
}
"""How the derivative term is weighed, by name."""
DEGREES = {"neighbors_1": 1, "neighbors_2": 2}
"""Derivatives that are estimated from the values: degree of the polynomials, by name."""
NUM_TEST_POINTS = 1024
_TEST_SEED, _HELD_OUT, _NOISE = 999_999, 1_000, 10_000
Points = dict[str, Tensor]
"""Columns ``x``, ``y`` and ``dydx``."""


@dataclass(frozen=True)
class Cell:
    """One run. As many points as it is trained on are held out for validation.

    Args:
        function: A key of ``LANDSCAPES``.
        num_points: Training points.
        method: A key of ``METHODS``.
        noise: Deviation of the noise on the derivatives, in units of the root mean square of
            their column.
        seed: Of points, noise and first weights.
        derivatives: ``exact``, or a key of ``DEGREES``.

    Raises:
        ValueError: If a name is unknown or the noise is negative.
    """

    function: str
    num_points: int
    method: str
    noise: float
    seed: int
    derivatives: str = "exact"

    def __post_init__(self) -> None:
        known = {
            "function": list(LANDSCAPES),
            "method": list(METHODS),
            "derivatives": ["exact", *DEGREES],
        }
        for name, choices in known.items():
            if (got := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {got!r}")
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")


def draw_points(function: str, size: int, seed: int) -> Points:
    """Draw uniform points of a test function in two dimensions.

    Args:
        function: A key of ``LANDSCAPES``.
        size: How many.
        seed: Of the points.

    Returns:
        Points, exact values and exact gradients, in float64.
    """
    f = landscape(function)
    low, high = torch.tensor(f.bounds(), dtype=torch.float64).T
    unit = torch.rand(size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = low + (high - low) * unit
    return {"x": x, "y": f.value(x), "dydx": f.gradient(x)}


def labels_of(cell: Cell) -> Points:
    """Return what a run is taught, in the function's own units.

    Args:
        cell: The run.

    Returns:
        Its points with exact values and with the derivatives that it is given.
    """
    points = draw_points(cell.function, cell.num_points, cell.seed)
    if (degree := DEGREES.get(cell.derivatives)) is not None:
        points["dydx"] = neighbor_derivatives(points["x"], points["y"], degree=degree).derivative
    generator = torch.Generator().manual_seed(_NOISE + cell.seed)
    noise = torch.randn(points["dydx"].shape, generator=generator, dtype=torch.float64)
    size = points["dydx"].square().mean(0).sqrt()
    return {**points, "dydx": points["dydx"] + cell.noise * size * noise}


def label_nmse(cell: Cell) -> float:
    """Return the squared error of a run's derivatives over the square of the exact ones.

    Args:
        cell: The run.

    Returns:
        The ratio, in the standard units of the training points, where the run sees it.
    """
    exact = draw_points(cell.function, cell.num_points, cell.seed)
    units = Standardizer.fit(exact["x"], exact["y"])
    given, true = (units.jacobian(each["dydx"]) for each in (labels_of(cell), exact))
    return float((given - true).square().sum() / true.square().sum())


def data_of(cell: Cell) -> tuple[Points, Points, Points]:
    """Return the points of a run in the units of its training points.

    Args:
        cell: The run.

    Returns:
        Training points, held-out points and test points; the test points are the same for every
        seed.
    """
    known = labels_of(cell)
    units = Standardizer.fit(known["x"], known["y"])
    held_out = draw_points(cell.function, cell.num_points, _HELD_OUT + cell.seed)
    truth = draw_points(cell.function, NUM_TEST_POINTS, _TEST_SEED)
    return in_units(known, units), in_units(held_out, units), in_units(truth, units)


def in_units(points: Points, units: Standardizer) -> Points:
    """Return standardized points in single precision.

    Args:
        points: In the function's units.
        units: The standard ones.
    """
    changes = {"x": units.inputs, "y": units.targets, "dydx": units.jacobian}
    return {name: change(points[name]).float() for name, change in changes.items()}


def stacked(tables: Iterable[Points]) -> Points:
    """Put the points of all runs into one table.

    Args:
        tables: One a run, all of one size.

    Returns:
        The columns, with a first axis for the runs.
    """
    listed = list(tables)
    return {name: torch.stack([table[name] for table in listed]) for name in listed[0]}
