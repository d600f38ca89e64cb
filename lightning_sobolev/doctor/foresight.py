r"""Will derivatives pay? Asked of the data alone, before any training.

Between two near points the values change by :math:`\Delta y`; what the derivatives say of that
change is compared with it.

Note [noise of the values]
    It is in every difference and in no derivative. A sum over noisy pairs is larger by the same
    amount above and below the line, which moves F and T towards 0 and never changes their sign.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.doctor.pairs import Pairs, near_pairs
from lightning_sobolev.doctor.scores import score, standard_error

FAR = -10.0
"""First-order scores below: a derivative overshoots its neighbor three times and more."""
_MOST_NOISE = 0.99
_LEAST_REPEATS = 5
_CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class Foresight:
    """What the derivatives of a data set say of the change from a point to its neighbors.

    1 is all of the change, 0 none; below, predicting no change would be better.

    Args:
        first_order: What the derivative at one point says.
        both_ends: What the derivatives at both ends say together.
        error: Standard error of ``both_ends`` over the pairs, as if they were independent.
        noise: Share of the change's mean square that is noise of the values; it is taken off.
    """

    first_order: float
    both_ends: float
    error: float
    noise: float

    @property
    def harms(self) -> bool:
        """Whether derivatives at these points are expected to raise the error of the values."""
        return self._explains_nothing or self.first_order < FAR

    @property
    def _explains_nothing(self) -> bool:
        return self.both_ends + self.error < 0.0

    @property
    def text(self) -> str:
        """One line for a log."""
        noise = f" ({self.noise:.0%} of it is noise, taken off)" if self.noise >= 0.01 else ""
        change = f"of the change to the next point{noise}"
        if self._explains_nothing:
            return (
                f"the derivatives explain less than none {change}: at this distance between points "
                "they mislead"
            )
        share = f"the derivatives explain {max(self.both_ends, 0.0):.0%} {change}"
        if self.harms:
            return (
                f"{share} from both its ends, but one alone overshoots it (score "
                f"{self.first_order:.3g}): the points are too far apart, the derivatives mislead"
            )
        if self.both_ends <= self.error:
            return f"{share}, give or take {self.error:.0%}: it is open whether they help"
        return f"{share}: they should help"


def foresight(
    x: Float[Tensor, "points *in"],
    y: Float[Tensor, "points *out"],
    jacobian: Float[Tensor, "points ..."],
    neighbors: int = 2,
) -> Foresight:
    r"""Compare the changes of values between near points with what the derivatives say of them.

    .. math::
        F = 1 - \frac{\sum |\Delta y - J_i\,\Delta x|^2}{\sum |\Delta y|^2}, \qquad
        T = 1 - \frac{\sum |\Delta y - \tfrac12 (J_i + J_j)\,\Delta x|^2}{\sum |\Delta y|^2}

    over pairs (i, j) of a point and one of its nearest neighbors; distances are in standard
    deviations of each input. T is the trapezoid rule, exact for quadratics. The share of noise in
    the changes is measured at repeated points or, without them, where the trapezoid's error does
    not vanish with the distance; it is taken off above and below the line.

    Cost: a search of neighbors (at most 2,048 points against all) and two products of each of
    their Jacobians with a vector; no network. Where the distances take more than two seconds
    (4,096 points of 1,000 inputs), fewer points are asked about.

    Assumes that near points in the inputs' units are near for the function, too. The outputs are
    summed as they are: one that is much larger than the others decides.

    Args:
        x: The points.
        y: The values there.
        jacobian: The derivatives there, ``[points, *out, *in]``; NaN where they are not known.
            ``*out`` may be missing for a single output.
        neighbors: Neighbors of each point that it is compared with.

    Returns:
        Both scores, the error of the second, and the share of noise.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or no two points differ whose
            derivatives are known.

    Example:
        >>> x = torch.linspace(-1, 1, 10)[:, None]
        >>> foresight(x, x**2, 2 * x).text
        'the derivatives explain 100% of the change to the next point: they should help'
    """
    points, values, derivatives = _flat(x, y, jacobian)
    require(neighbors >= 1, "neighbors", "at least 1", neighbors)
    pairs = near_pairs(points, values, neighbors)
    ahead, back = (_along(derivatives, rows, pairs.dx) for rows in (pairs.first, pairs.second))
    known = ~(ahead.isnan() | back.isnan())
    require(bool(known.any()), "jacobian", "known at two different points", "NaN, or one point")
    change, ahead = (torch.where(known, each, 0.0) for each in (pairs.dy, ahead))
    middle = torch.where(known, (ahead + back) / 2, 0.0)
    noise = _noise(points, values, pairs, change, middle)
    first_order, both_ends = (score(change, said, noise) for said in (ahead, middle))
    return Foresight(first_order, both_ends, standard_error(change, middle, noise), noise)


def _flat(x: Tensor, y: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check and return ``[points, in]``, ``[points, out]`` and ``[points, out, in]``."""
    count = len(x) if x.ndim else 0
    require(count >= 2, "x", "[points, *in] with two points", list(x.shape))
    require(y.ndim >= 1 and len(y) == count, "y", f"[{count}, *out]", list(y.shape))
    shapes = [y.shape + x.shape[1:]] + ([x.shape] if y[0].numel() == 1 else [])
    expected = f"[points, *out, *in], here {list(shapes[0])}"
    require(jacobian.shape in shapes, "jacobian", expected, list(jacobian.shape))
    for name, given in (("x", x), ("y", y)):
        require(bool(given.isfinite().all()), name, "finite", "NaN or Inf")
    require(not bool(jacobian.isinf().any()), "jacobian", "finite or NaN", "Inf")
    points, values = (given.detach().cpu().double().reshape(count, -1) for given in (x, y))
    sizes = (count, values.shape[1], points.shape[1])
    return points, values, jacobian.detach().cpu().reshape(sizes)


def _along(derivatives: Tensor, rows: Tensor, dx: Tensor) -> Float[Tensor, "pairs out"]:
    """Multiply with a way; NaN where an entry that counts is not known."""
    found = []
    size = max(1, _CHUNK // derivatives[0].numel())
    for own, way in zip(torch.split(rows, size), torch.split(dx, size), strict=True):
        entries = derivatives[own].double()
        unknown = (entries.isnan() & (way != 0)[:, None]).any(-1)
        said = torch.einsum("poi,pi->po", entries.nan_to_num(nan=0.0), way)
        found.append(said.masked_fill(unknown, torch.nan))
    return torch.cat(found)


def _noise(points: Tensor, values: Tensor, pairs: Pairs, change: Tensor, middle: Tensor) -> float:
    """Return the share of noise in the changes' mean square."""
    total = float(change.square().sum(1).mean())
    if total == 0.0:
        return 0.0
    variance = _repeated_variance(points, values)
    if variance is not None:
        return min(2 * variance / total, _MOST_NOISE)
    spread = points.std(0)
    ways = pairs.dx / torch.where(spread > 0, spread, torch.ones_like(spread))
    nearness = torch.stack([torch.ones(len(ways), dtype=ways.dtype), ways.square().sum(1)], 1)
    rest = (change - middle).square().sum(1, keepdim=True)
    at_zero = float(torch.linalg.lstsq(nearness, rest).solution[0])
    # What the derivatives speak of is no noise: ripples that the points cannot resolve scatter the
    # values as noise does, but their derivatives are too large, not too small.
    said = float(middle.square().sum(1).mean())
    return min(max(min(at_zero, total - said) / total, 0.0), _MOST_NOISE)


def _repeated_variance(points: Tensor, values: Tensor) -> float | None:
    """Return the variance of values at points that occur more than once; None of too few."""
    _, place = torch.unique(points, dim=0, return_inverse=True)
    counts = place.bincount()
    free = len(points) - len(counts)
    if free < _LEAST_REPEATS:
        return None
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, place, values)
    apart = values - (sums / counts[:, None])[place]
    return float(apart.square().sum()) / free
