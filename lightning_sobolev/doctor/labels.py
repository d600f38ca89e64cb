"""Are stored derivatives those of the stored values? Asked of the data alone, before training."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.doctor.evidence import Case
from lightning_sobolev.doctor.faults import FAULTS, Finding, find, judged
from lightning_sobolev.doctor.gather import Samples

FEWEST_POINTS = 30
_NEIGHBORS = 4
_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class LabelReport:
    """What near pairs of points say of stored derivatives.

    Args:
        finding: ``"right"``, ``"sign"``, ``"unit"``, ``"transposed"``, ``"shifted"``, ``"noise"``
            (or kinks; the labels are right but for it) or ``"unknown"`` (the points do not tell).
        because: What it is known by.
        slope: Regression of each output's differences on what the labels predict; 1 is right.
        correlation: Between both.
        error: Standard error of each slope.
        findings: What each output looks like on its own.
        factor: How many times too large the labels are, -1 for the wrong sign; None where there is
            no such fault, or not the same one everywhere.
        factors: The same of every output or input; NaN is not known; empty where one is enough.
        per: What ``factors`` are of: ``"output"``, ``"input"`` or None.
        shift: How many rows further down the label of a row stands, where rows are shifted.
        points: Number of points.
        pairs: Number of pairs.
    """

    finding: str
    because: str
    slope: Float[Tensor, " out"]
    correlation: Float[Tensor, " out"]
    error: Float[Tensor, " out"]
    findings: tuple[str, ...]
    points: int
    pairs: int
    factor: float | None = None
    factors: tuple[float, ...] = ()
    per: str | None = None
    shift: int | None = None

    @property
    def is_fault(self) -> bool:
        """Whether the labels are wrong: not merely noisy, and not merely unknown."""
        return self.finding in FAULTS

    def advice(self) -> str:
        """Return what to do about the fault; empty where there is none."""
        if self.finding == "transposed":
            return "store the Jacobian as [batch, *out, *in]: swap its last two axes"
        if self.shift is not None:
            place = f"{abs(self.shift)} row(s) further {'down' if self.shift > 0 else 'up'}"
            return f"take the labels from {place}: torch.roll(jacobian, {-self.shift}, 0)"
        if self.factor is not None and self.finding == "sign":
            return (
                'negate them; forces are minus the gradient, which BatchTeacher(forces="...") knows'
            )
        if self.factor is not None:
            return (
                "bring values, inputs and derivatives into the same units: the exact factor is "
                f"BatchTeacher's scale=, here about {1.0 / self.factor:.2g}"
            )
        if self.is_fault:
            return f"bring the labels of every {self.per} into the sign and unit of its values"
        return ""

    def text(self) -> str:
        """Return what was found in a few lines: the finding, then slopes by output."""
        head = f"labels: {_NAMES[self.finding]}{self._factors()}; {self.because}"
        advice = self.advice()
        lines = [f"{head}. {_sentence(advice)}" if advice else f"{head}."]
        lines.append(f"  {self.points} points, {self.pairs} pairs of neighbors")
        lines += [self._line(number) for number in range(min(len(self.findings), _SHOWN))]
        if len(self.findings) > _SHOWN:
            lines.append(f"  and {len(self.findings) - _SHOWN} more outputs")
        return "\n".join(lines)

    def _line(self, number: int) -> str:
        columns = (self.slope, self.error, self.correlation)
        slope, error, correlation = (float(column[number]) for column in columns)
        return (
            f"  output {number}: slope {slope:.3g} (standard error {error:.1g}), correlation "
            f"{correlation:.2f}: {self.findings[number]}"
        )

    def _factors(self) -> str:
        if self.factor is not None and self.finding == "unit":
            return f", about {self.factor:.3g} times too large"
        wrong = [(n, f) for n, f in enumerate(self.factors) if math.isfinite(f) and f != 1.0]
        shown = ", ".join(f"{n}: {f:.3g} times" for n, f in wrong[:_SHOWN])
        rest = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        return f" of single {self.per}s ({shown}{rest})" if wrong else ""


_NAMES = {
    "right": "they are the derivatives of the values",
    "noise": "they are the derivatives of the values, but noisy",
    "unknown": "these points do not tell",
    "sign": "the wrong sign",
    "unit": "the wrong unit",
    "transposed": "transposed Jacobians",
    "shifted": "rows shifted",
}


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def examine_labels(
    x: Float[Tensor, "points *in"],
    y: Float[Tensor, "points *out"],
    jacobian: Float[Tensor, "points *axes"],
) -> LabelReport:
    r"""Say whether stored derivatives look like those of the stored values.

    Over pairs of near points the differences of the values are regressed on the trapezoid of the
    derivatives,

    .. math:: y_j - y_i \approx s \cdot \tfrac12 (J_i + J_j)(x_j - x_i).

    Slope and correlation near 1: right. Slope near -1: the wrong sign; far from 1 although the
    correlation is good: the wrong unit; and so for other rows' labels, for transposed ones (square
    Jacobians), for single inputs and outputs. A fault is named only where the labels, remedied,
    explain the differences and error bars exclude the right ones; docs/labels-doctor.md has the
    rates.

    Cost: the four nearest neighbors of at most 2,048 points, and about forty passes over the
    Jacobians at their ends; no network. A copy in float64 is made. The global random state is not
    touched.

    Assumes that values have no noise larger than their changes between neighbors; otherwise nothing
    is found. Rows in another order than they were stored in (a shuffled loader) cannot be seen to
    be shifted.

    Args:
        x: Inputs, in any units; each is measured in its own standard deviation.
        y: Values; NaN is not known.
        jacobian: The labels ``[points, *out, *in]``; NaN is not known.

    Returns:
        What they look like; ``"unknown"`` for fewer than 30 points.

    Raises:
        ValueError: If a shape does not fit, or ``x`` is not finite.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> examine_labels(x, x.square(), -2 * x).finding
        'sign'
    """
    samples = _checked(x, y, jacobian)
    if len(x) < FEWEST_POINTS:
        return _nothing(samples, f"{len(x)} points: at least {FEWEST_POINTS} are needed")
    case = Case.of(samples, _NEIGHBORS)
    if not len(case.pairs.first):
        return _nothing(samples, "all points coincide")
    found, own = find(case), case.fit_outputs()
    return LabelReport(
        found.verdict, found.because, own.slope, own.corr, own.error,
        _of_outputs(found, [word for word, _ in judged(own)]), len(x), len(case.pairs.first),
        found.factor, found.factors, found.per, found.shift,
    )  # fmt: skip


def _nothing(samples: Samples, because: str) -> LabelReport:
    outputs = samples.y.shape[1]
    unknown = samples.y.new_full((outputs,), math.nan)
    findings = ("unknown",) * outputs
    return LabelReport("unknown", because, unknown, unknown, unknown, findings, len(samples), 0)


def _of_outputs(found: Finding, words: list[str]) -> tuple[str, ...]:
    is_of_all = found.verdict in ("transposed", "shifted", "noise") or found.per == "input"
    return tuple(found.verdict if is_of_all else word for word in words)


def _checked(x: Tensor, y: Tensor, jacobian: Tensor) -> Samples:
    require(x.numel() > 0, "x", "[points, *in] with at least one point", list(x.shape))
    require(len(y) == len(x) and y.numel() > 0, "y", f"[{len(x)}, *out]", list(y.shape))
    split = jacobian.ndim - (x.ndim - 1)
    outer, out = jacobian.shape[1:split], y.shape[1:]
    # The size alone would let a transposed array pass.
    fits = len(jacobian) == len(x) and jacobian.shape[split:] == x.shape[1:] and split >= 1
    expected = f"[points, *out, *in] = {[*y.shape, *x.shape[1:]]}"
    is_fit = fits and (outer == out or outer.numel() == out.numel() == 1)
    require(is_fit, "jacobian", expected, list(jacobian.shape))
    require(bool(x.isfinite().all()), "x", "finite", "NaN or Inf")
    points, values, labels = (part.detach().cpu().double() for part in (x, y, jacobian))
    points, values = points.reshape(len(x), -1), values.reshape(len(x), -1)
    return Samples(points, values, labels.reshape(*values.shape, points.shape[1]))
