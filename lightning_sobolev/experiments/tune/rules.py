"""Who copies whom: the three exploit rules of population based training, as pure functions.

Every rule takes the standings of a population and returns ``{loser: donor}``. A member that has
diverged is always a loser and never a donor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from random import Random

Plan = dict[int, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """How well a member does; higher is better.

    Args:
        score: Its latest evaluation; NaN or infinite once it has diverged.
        recent: Its latest evaluations, the newest last; copied with the weights.
    """

    score: float
    recent: Sequence[float] = ()

    @property
    def is_finite(self) -> bool:
        """Whether it may be compared."""
        return math.isfinite(self.score)


def truncation(standings: Sequence[Standing], random: Random, *, fraction: float) -> Plan:
    """Replace the bottom fraction by members of the top fraction.

    Args:
        standings: Of all members.
        random: Source of the draws.
        fraction: Share of the population at either end, rounded up, at most half.

    Returns:
        The donor of every loser.

    Source:
        Jaderberg et al. 2017 (arXiv:1711.09846): truncation selection, there with 20 %.
    """
    count = min(math.ceil(len(standings) * fraction), len(standings) // 2)
    order = sorted(range(len(standings)), key=lambda i: _comparable(standings[i].score))
    top = [i for i in order[len(order) - count :] if standings[i].is_finite]
    losers = [i for i in order if i in order[:count] or not standings[i].is_finite]
    return {loser: random.choice(top) for loser in losers} if top else {}


def welch(standings: Sequence[Standing], random: Random, *, level: float) -> Plan:
    """Copy a random other member if its recent evaluations are better by Welch's t-test.

    Args:
        standings: Of all members, with at least two recent evaluations to be compared.
        random: Source of the draws.
        level: Largest p-value (two-sided) of a difference that counts.

    Returns:
        The donor of every loser.

    Source:
        Jaderberg et al. 2017 (arXiv:1711.09846): t-test selection, over 10 evaluations.
    """
    from scipy.stats import ttest_ind

    def is_better(other: Standing, own: Standing) -> bool:
        ours, theirs = own.recent, other.recent
        if min(len(set(ours)), len(set(theirs))) < 2:
            return False  # no variance, no test
        test = ttest_ind(theirs, ours, equal_var=False)
        return bool(test.statistic > 0 and test.pvalue < level)

    return _duels(standings, random, is_better)


def tournament(standings: Sequence[Standing], random: Random) -> Plan:
    """Copy a random other member if its latest evaluation is better.

    Args:
        standings: Of all members.
        random: Source of the draws.

    Returns:
        The donor of every loser.

    Source:
        Jaderberg et al. 2017 (arXiv:1711.09846): binary tournament.
    """
    return _duels(standings, random, lambda other, own: other.score > own.score)


def _duels(
    standings: Sequence[Standing],
    random: Random,
    is_better: Callable[[Standing, Standing], bool],
) -> Plan:
    plan = {}
    for member, own in enumerate(standings):
        rivals = [i for i, s in enumerate(standings) if i != member and s.is_finite]
        if rivals:
            rival = random.choice(rivals)
            if not own.is_finite or is_better(standings[rival], own):
                plan[member] = rival
    return plan


def _comparable(score: float) -> float:
    return score if math.isfinite(score) else -math.inf


def in_order(plan: Mapping[int, int]) -> list[int]:
    """Order losers so that everybody is copied before being replaced.

    Args:
        plan: Donor by loser. Donors are strictly better, so no chain closes.

    Returns:
        The losers.
    """
    first: dict[int, set[int]] = {loser: set() for loser in plan}
    for loser, donor in plan.items():
        first.setdefault(donor, set()).add(loser)
    return [member for member in TopologicalSorter(first).static_order() if member in plan]
