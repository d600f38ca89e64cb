r"""Which fault, if any, explains what near pairs say of stored derivatives.

A fault is named only where the labels, *remedied*, explain the differences of the values, and error
bars of four standard deviations exclude the right labels. Little that is explained is no fault:
right derivatives of a function that turns between the points explain nothing either.

Note [how far a right slope may be from 1]
    With right labels, points that are far apart bend the slope: for :math:`x^m` and independent
    points it is about 2/m, but the prediction is then imperfect, too. Over powers, exponentials,
    waves, kinks and the test functions of optimization in 2 to 20 dimensions
    :math:`|\log \text{slope}| < 3.4 \sqrt{1 - \text{corr}^2}` holds wherever the correlation is
    above 0.3. A factor is named from 4 on. Where little is explained, a trend under ripples has a
    slope near zero as well; but its differences then predict the derivatives no more than well,
    :math:`\text{corr}^2 / \text{slope} \le 1`, and a label that is too large is far above.

Note [what is called noise]
    Errors of right labels that grow with the distance itself, not with its third power. Kinks err
    alike. Where all neighbors are about equally far (many inputs) the two cannot be told apart, and
    nothing is said.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sobolev.doctor.evidence import Case, Fit, by_input, trapezoid

FAULTS = ("sign", "unit", "transposed", "shifted")
"""Findings that are faults; the others are ``right``, ``noise`` and ``unknown``."""

_LEAST_CORR, _SIGMAS = 0.3, 4.0
_CLEAR_CORR = 0.5
"""For a factor, which fits to anything, and for one of many inputs or outputs."""

_LEAST_BREADTH = 5.0
"""Fewer points are an accident that no error bar covers: an outlier and its neighbors are 3.6."""

_MOST_INPUTS = 32
"""Above, the inputs are not told apart: the regression's matrices would be large."""

_MOST_SHIFT = 16
_Verdict = tuple[str, float | None]
"""A finding, and how many times too large the labels are (negative: of the wrong sign)."""


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What labels look like, what it is known by, and what describes it.

    Args:
        verdict: ``right``, ``noise``, ``unknown``, or one of :data:`FAULTS`.
        because: What it is known by.
        factor: How many times too large all labels are.
        factors: The same of several, NaN where it is not known.
        per: What ``factors`` are of, ``"output"`` or ``"input"``.
        shift: How many rows further down the label of a row stands.
    """

    verdict: str
    because: str
    factor: float | None = None
    factors: tuple[float, ...] = ()
    per: str | None = None
    shift: int | None = None


def find(case: Case) -> Finding:
    """Return the fault that is found, or whether the labels are right."""
    given = case.fit(case.along)
    if case.along.nan_to_num().any() and case.breadth() < _LEAST_BREADTH:
        return Finding("unknown", "the labels of a few points outweigh all others")
    return (
        _transposed(case, given) or _shifted(case) or _by_input(case, given)
        or _scaled(case, given) or _without_fault(case, given)
    )  # fmt: skip


def judged(fit: Fit) -> list[_Verdict]:
    """Judge every part of a fit on its own."""
    columns = (fit.slope.tolist(), fit.corr.tolist(), fit.error.tolist())
    least = _LEAST_CORR if fit.corr.numel() == 1 else _CLEAR_CORR
    return [_judge(*each, least) for each in zip(*columns, strict=True)]


def _judge(slope: float, corr: float, error: float, least: float = _LEAST_CORR) -> _Verdict:
    if abs(corr) < least or abs(slope) < _SIGMAS * error:
        return "unknown", None
    reach, spread = abs(math.log(abs(slope))), math.sqrt(max(0.0, 1.0 - corr * corr))
    is_far = reach > _resolution(slope, corr, error)
    if (
        is_far
        and abs(corr) >= _CLEAR_CORR
        and (abs(slope) > 1.0 or corr * corr / abs(slope) > math.exp(2.0 * spread))
    ):
        return "unit", 1.0 / slope
    if slope < 0.0:
        return "sign", -1.0
    return ("right", 1.0) if reach < math.log(3.0) else ("unknown", None)


def _resolution(slope: float, corr: float, error: float) -> float:
    """Return the logarithm of the smallest factor that can be told; see the note above."""
    return 0.1 + 4.0 * math.sqrt(max(0.0, 1.0 - corr * corr)) + _SIGMAS * error / abs(slope)


def _transposed(case: Case, given: Fit) -> Finding | None:
    # Whether the antisymmetric part of square Jacobians has the wrong sign.
    jacobian = case.jacobian
    if jacobian.shape[1] != jacobian.shape[2] or jacobian.shape[1] == 1:
        return None
    other = trapezoid(jacobian.mT, case.pairs) / case.scale
    parts = case.fit((case.along + other) / 2.0, (case.along - other) / 2.0)
    slope, corr, error = float(parts.slope[1]), float(parts.corr[1]), float(parts.error[1])
    remedied = case.fit(other)
    is_wrong = corr <= -_LEAST_CORR and slope <= -_SIGMAS * error
    if not is_wrong or float(remedied.corr) <= max(abs(float(given.corr)), _LEAST_CORR):
        return None
    because = f"transposed they explain {_explained(remedied)} of the differences"
    return Finding("transposed", f"{because}, as they are {_explained(given)}")


def _shifted(case: Case) -> Finding | None:
    # Whether the labels of other rows explain the differences better.
    mean = case.jacobian.nanmean(0)  # of any rows the same
    dy = case.dy - case.pairs.dx @ (mean / case.scale[:, None]).T
    rest = case.jacobian - mean
    rows = torch.arange(len(case.samples))
    most = min(_MOST_SHIFT, (len(rows) - 1) // 2)

    def moved(by: int) -> Tensor:
        return trapezoid(rest, case.pairs, (rows + by) % len(rows)) / case.scale

    shares = {by: _correlation(moved(by), dy) ** 2 for by in range(-most, most + 1) if by}
    by = max(shares, key=shares.__getitem__)
    own, best = case.fit(moved(0), dy=dy), case.fit(moved(by), dy=dy)
    own_left = float(own.left)
    gain = own.lefts - best.lefts
    is_better = own_left - float(best.left) > (_SIGMAS + 1.0) * float(gain.std())
    if not is_better or float(best.corr) < 0.4 or float(best.left) > 0.85 * own_left:
        return None
    because = (
        f"those {abs(by)} row(s) {'below' if by > 0 else 'above'} explain {_explained(best)} of "
        f"the differences, a row's own {_explained(own)} (both without the mean label)"
    )
    return Finding("shifted", because, shift=by)


def _correlation(along: Tensor, dy: Tensor) -> float:
    unknown = ~(along + dy).isfinite()
    p, q = along.masked_fill(unknown, 0.0), dy.masked_fill(unknown, 0.0)
    return float((p * q).sum() / (p.norm() * q.norm()).clamp(min=1e-300))


def _by_input(case: Case, given: Fit) -> Finding | None:
    # Whether every input has a sign and a unit of its own.
    inputs = case.jacobian.shape[2]
    if not 1 < inputs <= _MOST_INPUTS or case.dy.numel() < 20 * inputs:
        return None
    fit = case.fit(*(by_input(case.jacobian, case.pairs) / case.scale))
    words = judged(fit)
    wrong, factors = [word for word, _ in words if word in FAULTS], _factors(words)
    if not wrong or _agree(factors) or float(fit.left) > 0.5 * float(given.left):
        return None
    because = (
        f"with a factor for each input they explain {_explained(fit)} of the differences, with "
        f"one {_explained(given)}"
    )
    return Finding(wrong[0], because, None, factors, "input")


def _scaled(case: Case, given: Fit) -> Finding | None:
    # Signs and units: of all labels, or of each output.
    word, factor = _judge(float(given.slope), float(given.corr), float(given.error))
    words = judged(case.fit_outputs())
    wrong, factors = [word for word, _ in words if word in FAULTS], _factors(words)
    if word in FAULTS and (not wrong or _agree(factors)):
        assert factor is not None
        remedied = "negated" if word == "sign" else f"divided by {factor:.3g}"
        because = f"{remedied} they explain {_explained(given)} of the differences"
        return Finding(word, because, factor)
    if not wrong:
        return None
    return Finding(wrong[0], "so say the slopes of single outputs", None, factors, "output")


def _factors(words: list[_Verdict]) -> tuple[float, ...]:
    return tuple(math.nan if factor is None else factor for _, factor in words)


def _agree(factors: tuple[float, ...]) -> bool:
    known = [factor for factor in factors if math.isfinite(factor)]
    sizes = [abs(factor) for factor in known]
    return len({factor > 0 for factor in known}) == 1 and max(sizes) < 1.5 * min(sizes)


def _explained(fit: Fit) -> str:
    return f"{1.0 - float(fit.left):.0%}"


def _without_fault(case: Case, given: Fit) -> Finding:
    slope, corr, error = (float(part) for part in (given.slope, given.corr, given.error))
    verdict, _ = _judge(slope, corr, error)
    if verdict != "right":
        return Finding("unknown", _reason(case, slope, corr))
    noise = _noise(case, given)
    if noise is not None:
        return Finding("noise", noise)
    factor = math.exp(_resolution(slope, corr, error))
    explained = f"they explain {_explained(given)} of the differences"
    return Finding(verdict, f"{explained}; a factor above {factor:.2g} would have been noticed")


def _noise(case: Case, given: Fit) -> str | None:
    growth, left = case.growth(), float(given.left)
    is_told = growth.reach > 1.6 and growth.power + growth.error < 3.0
    if not is_told or not 0.02 < left < 0.5:
        return None
    # Of both ends' noise half the variance enters.
    squares = case.jacobian.square() / case.scale[:, None].square()
    size = squares.nanmean() * case.pairs.dx.square().sum(1).mean()
    share = math.sqrt(2.0 * left * float(case.dy.square().nanmean()) / float(size))
    return (
        f"the errors of what they predict grow with the power {growth.power / 2:.1f} of the "
        f"distance, as those of noisy labels do (1), not as bends do (3): noise of about "
        f"{share:.0%} of their size, or kinks"
    )


def _reason(case: Case, slope: float, corr: float) -> str:
    if not case.along.nan_to_num().any():
        return "all known derivatives along the pairs are zero"
    if abs(corr) >= _LEAST_CORR and slope > 0.0:
        return "the labels bend too much between the points to tell a factor from a curve"
    alike = _alikeness(case)
    if alike > 0.7:
        return (
            f"neighbors differ almost as any two points do ({alike:.2f} of their squared "
            "difference): the points are too far apart, or the values too noisy"
        )
    return (
        f"the values are alike at neighbors (they differ by {alike:.2f} of the squared difference "
        "of any two points), but the labels do not explain it: ripples between the points, or "
        "labels of something else"
    )


def _alikeness(case: Case) -> float:
    # Of every output in its own units, where all of it is known.
    columns = [column[column.isfinite()] for column in case.samples.y.T]
    variance = torch.stack([c.var() if len(c) > 1 else c.new_tensor(math.nan) for c in columns])
    ratio = case.pairs.dy.square().nanmean(0) / (2.0 * variance)
    return float(ratio[ratio.isfinite()].mean())
