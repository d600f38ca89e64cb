"""What a test measures of policies, by what their outputs mean."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.functional.discrepancies import check_shapes
from lightning_sobolev.metrics import ActionDisagreement, PolicyKL
from lightning_sobolev.metrics._sums import MeanMetric
from lightning_sobolev.policies import DiscreteHead, Head


class RowMean(MeanMetric):
    """Mean over rows of what a function says of a student's and a teacher's answers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Take in the answers of one batch."""
        check_shapes(student, teacher, "teacher")
        rows = self.function(student.double(), teacher.double())
        self._add(total=rows.sum(), count=rows.new_tensor(len(rows)))


def policy_metrics(head: Head, same_actions: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    """Return the divergence and how often, or how far, greedy actions differ, by their names."""
    merge = [list(group) for group in same_actions]
    if isinstance(head, DiscreteHead):
        return {
            "kl": PolicyKL(),
            "action_disagreement": ActionDisagreement(),
            "merged_disagreement": ActionDisagreement(merge=merge),
        }
    require(not merge, "same_actions", "empty where actions are no choice", merge)
    distance = RowMean(head.disagreement)
    return {"kl": RowMean(head.divergence), f"action_{head.difference}": distance}
