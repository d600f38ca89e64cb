"""Distances between a student's and a target's projected derivatives.

Each keeps the projection axis and the batch axis and sums over the elements of a row; the one
reduction to a scalar happens in the objective. Shapes must agree exactly: a silent broadcast of
``[batch, 1]`` against ``[batch]`` would compare every row with every other.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require

Rows = Float[Tensor, "proj batch *d"]
LogProbs = Float[Tensor, "batch classes"]

Discrepancy = Callable[[Tensor, Tensor], Tensor]
"""Maps two ``[proj, batch, *d]`` to ``[proj, batch]``."""

PolicyLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps log-probabilities ``[batch, classes]`` of student and teacher to ``[batch]``."""


def squared(student: Rows, target: Rows) -> Float[Tensor, "proj batch"]:
    r"""Return :math:`\sum_i (s_i - t_i)^2`."""
    return _sum(_difference(student, target).square())


def l1(student: Rows, target: Rows) -> Float[Tensor, "proj batch"]:
    r"""Return :math:`\sum_i |s_i - t_i|`; its gradient is 0 where the two agree."""
    return _sum(_difference(student, target).abs())


def huber(student: Rows, target: Rows, *, delta: float = 1.0) -> Float[Tensor, "proj batch"]:
    r"""Return the sum of Huber's function of :math:`e_i = s_i - t_i` for every row.

    It is :math:`e^2 / 2` up to :math:`|e| = \delta`, which is in units of the rows, and
    :math:`\delta (|e| - \delta / 2)` beyond.

    Raises:
        ValueError: If ``delta`` is not positive.

    Source:
        Huber 1964, Robust Estimation of a Location Parameter.
    """
    require(delta > 0, "delta", "positive", delta)
    error = _difference(student, target).abs()
    inner = error.clamp(max=delta)
    # e^2/2 inside, delta*(e - delta/2) outside, without a branch whose unused side could overflow
    return _sum(inner * (error - inner / 2))


def cosine(student: Rows, target: Rows) -> Float[Tensor, "proj batch"]:
    r"""Return :math:`1 - \cos(s, t)`: direction alone is compared.

    A zero vector has no direction: it is at distance 1 from every other and 0 from another zero,
    with gradient 0. A vector counts as zero if no element exceeds the root of the smallest normal
    number of its type (1e-19 in float32), so the gradient is finite everywhere.
    """
    check_shapes(student, target)
    student_unit, student_is_zero = _unit(student)
    target_unit, target_is_zero = _unit(target)
    distance = 1 - (student_unit * target_unit).sum(-1)
    return distance.masked_fill(student_is_zero & target_is_zero, 0.0)


def kl(student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> Float[Tensor, " batch"]:
    r"""Return the divergence :math:`\sum_a p_a (\log p_a - \log q_a)` of student q from teacher p.

    Classes that the teacher gives probability 0 add nothing, whatever the student says of them.
    """
    check_shapes(student_log_probs, teacher_log_probs)
    probs = teacher_log_probs.exp()
    # -inf - x times 0 would be NaN
    excess = torch.where(probs > 0, teacher_log_probs - student_log_probs, 0.0)
    return (probs * excess).sum(-1)


def reverse_kl(student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> Float[Tensor, " batch"]:
    r"""Return the divergence :math:`\sum_a q_a (\log q_a - \log p_a)` of teacher p from student q.

    Infinite where the student gives a class some probability that the teacher gives none.
    """
    return kl(teacher_log_probs, student_log_probs)


def cross_entropy(
    student_log_probs: LogProbs, teacher_log_probs: LogProbs
) -> Float[Tensor, " batch"]:
    r"""Return :math:`-\sum_a p_a \log q_a`: the divergence :func:`kl` plus the teacher's entropy.

    Its gradient in the student is that of :func:`kl`; at the teacher it is the entropy, not 0.
    """
    check_shapes(student_log_probs, teacher_log_probs)
    probs = teacher_log_probs.exp()
    # -inf times 0 would be NaN
    return -(probs * torch.where(probs > 0, student_log_probs, 0.0)).sum(-1)


def product(student: Rows, target: Rows) -> Float[Tensor, "proj batch"]:
    r"""Return an unbiased square of the error of a number that each projection estimates anew.

    With the errors :math:`e_p` of k independent estimates of a row the mean over projections is
    :math:`\frac{1}{k (k - 1)} \sum_{p \neq q} e_p e_q`, whose expectation is :math:`(E\,e)^2`;
    that of a mean of squares is larger by the variance. It may be negative.

    Raises:
        ValueError: If there are fewer than two projections.
    """
    error, count = _difference(student, target), len(student)
    require(count >= 2, "num_projections", "at least 2 with discrepancy='product'", count)
    others = (error.sum(0, keepdim=True) - error) / (count - 1)
    return _sum(error * others)


DISCREPANCIES: Mapping[str, Discrepancy] = {
    "squared": squared,
    "l1": l1,
    "huber": huber,
    "cosine": cosine,
    "product": product,
}
POLICY_LOSSES: Mapping[str, PolicyLoss] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "cross_entropy": cross_entropy,
}


def check_shapes(student: Tensor, target: Tensor, target_name: str = "target") -> None:
    """Refuse shapes that differ: they would broadcast to something else than was meant."""
    if student.shape != target.shape:
        raise ValueError(
            f"student and {target_name} must have the same shape, "
            f"got {list(student.shape)} and {list(target.shape)}"
        )


def _difference(student: Tensor, target: Tensor) -> Tensor:
    check_shapes(student, target)
    return student - target


def _sum(terms: Tensor) -> Tensor:
    return terms.flatten(2).sum(-1) if terms.dim() > 2 else terms


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    # The rows as [proj, batch, d] at length 1 (or 0), and which of them are zero.
    flat = rows.flatten(2) if rows.dim() > 2 else rows[..., None]
    # A direction does not change with the scale, so the scale needs no gradient; dividing by it
    # first keeps the squares from overflowing and underflowing.
    scale = flat.detach().abs().amax(-1, keepdim=True)
    is_zero = scale < torch.finfo(flat.dtype).tiny ** 0.5
    scaled = torch.where(is_zero, 0.0, flat) / scale.masked_fill(is_zero, 1.0)
    length = scaled.square().sum(-1, keepdim=True).masked_fill(is_zero, 1.0).sqrt()
    return scaled / length, is_zero.squeeze(-1)
