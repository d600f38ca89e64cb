"""How much of a change of values a prediction of it explains."""

import math

from jaxtyping import Float
from torch import Tensor


def score(
    change: Float[Tensor, "pairs out"], said: Float[Tensor, "pairs out"], noise: float = 0.0
) -> float:
    """Return the explained share of the changes' mean square: 1 is all of it, 0 none.

    Args:
        change: The changes.
        said: What is said of them.
        noise: Share of the changes' mean square that is noise; taken off above and below the line.
    """
    total, rest = float(change.square().sum()), float((change - said).square().sum())
    if total == 0.0:
        return 1.0 if rest == 0.0 else -math.inf
    return 1.0 - max(rest / total - noise, 0.0) / (1.0 - noise)


def standard_error(
    change: Float[Tensor, "pairs out"], said: Float[Tensor, "pairs out"], noise: float = 0.0
) -> float:
    """Return the standard error of :func:`score` over the pairs, as if they were independent.

    The sum below the line is taken as known, which is right for scores near 0 and too wide for
    those near 1; :func:`ratio_error` is not.
    """
    better = change.square().sum(1) - (change - said).square().sum(1)
    total = float(change.square().sum())
    if total == 0.0 or len(better) < 2:
        return 0.0
    return float(better.std()) * math.sqrt(len(better)) / total / (1.0 - noise)


def ratio_error(change: Float[Tensor, "pairs out"], said: Float[Tensor, "pairs out"]) -> float:
    """Return the standard error of :func:`score` as the ratio of two sums over pairs.

    Source:
        Cochran 1977, Sampling Techniques, third edition, chapter 6, the ratio estimator.
    """
    own, total = change.square().sum(1), float(change.square().sum())
    if total == 0.0 or len(own) < 2:
        return 0.0
    rest = (change - said).square().sum(1)
    apart = rest - rest.sum() / total * own
    return float(apart.std()) * math.sqrt(len(own)) / total
