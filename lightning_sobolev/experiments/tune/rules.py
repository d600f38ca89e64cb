"""Who copies whom: the three exploit rules of population based training, as pure functions.

A rule takes the standings of a population and returns ``{loser: donor}``. A member that has
diverged is always a loser and never a donor.

Source:
    Jaderberg et al. 2017, Population Based Training of Neural Networks (arXiv:1711.09846).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from random import Random

Plan = dict[int, int]
Standings = Sequence[Sequence[float]]
"""The latest scores of every member, the newest last; higher is better, NaN once it diverged."""
Rule = Callable[[Standings, Random], Plan]


@dataclass(frozen=True)
class Truncation:
    """Replace the bottom fraction by members of the top fraction.

    Args:
        fraction: Share of the population at either end, rounded up, at most half; 20 % in the
            paper.
    """

    fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"fraction must be in (0, 0.5], got {self.fraction}")

    def __call__(self, standings: Standings, random: Random) -> Plan:
        """Return the donor of every loser."""
        scores = [recent[-1] if math.isfinite(recent[-1]) else -math.inf for recent in standings]
        count = min(math.ceil(len(scores) * self.fraction), len(scores) // 2)
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        top = [i for i in order[len(order) - count :] if scores[i] > -math.inf]
        losers = [i for i in order if i in order[:count] or scores[i] == -math.inf]
        return {loser: random.choice(top) for loser in losers} if top else {}


@dataclass(frozen=True)
class Welch:
    """Copy a random other member if its recent scores are better by Welch's t-test.

    Args:
        level: Largest p-value (two-sided) of a difference that counts.
    """

    level: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), got {self.level}")

    def __call__(self, standings: Standings, random: Random) -> Plan:
        """Return the donor of every loser."""
        return _duels(standings, random, self._is_better)

    def _is_better(self, theirs: Sequence[float], ours: Sequence[float]) -> bool:
        from scipy.stats import ttest_ind

        if min(len(set(ours)), len(set(theirs))) < 2:
            return False  # no variance, no test
        test = ttest_ind(theirs, ours, equal_var=False)
        return bool(test.statistic > 0 and test.pvalue < self.level)


def tournament(standings: Standings, random: Random) -> Plan:
    """Copy a random other member if its latest score is better."""
    return _duels(standings, random, lambda theirs, ours: theirs[-1] > ours[-1])


def _duels(
    standings: Standings,
    random: Random,
    is_better: Callable[[Sequence[float], Sequence[float]], bool],
) -> Plan:
    plan = {}
    for member, ours in enumerate(standings):
        finite = [i for i, s in enumerate(standings) if i != member and math.isfinite(s[-1])]
        if finite:
            other = random.choice(finite)
            if not math.isfinite(ours[-1]) or is_better(standings[other], ours):
                plan[member] = other
    return plan


def in_order(plan: Mapping[int, int]) -> list[tuple[int, int]]:
    """Order losers and their donors so that everybody is copied before being replaced."""
    losers_of = {donor: [i for i in plan if plan[i] == donor] for donor in plan.values()}
    order = TopologicalSorter(losers_of).static_order()  # donors are better: no chain closes
    return [(member, plan[member]) for member in order if member in plan]
