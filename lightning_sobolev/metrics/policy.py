"""How well a policy is matched."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.functional.discrepancies import check_shapes, kl
from lightning_sobolev.metrics._sums import MeanMetric

LogProbs = Float[Tensor, "batch actions"]


class PolicyKL(MeanMetric):
    """Mean over rows of the divergence KL(teacher || student), in nats.

    Example:
        >>> metric = PolicyKL()
        >>> log_probs = torch.tensor([[0.25, 0.75]]).log()
        >>> metric.update(log_probs, log_probs)
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
    """

    def update(self, student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> None:
        """Take in log-probabilities of one batch."""
        check_shapes(student_log_probs, teacher_log_probs, "teacher_log_probs")
        divergence = kl(student_log_probs.double(), teacher_log_probs.double())
        self._add(total=divergence.sum(), count=_rows(student_log_probs))


class ActionDisagreement(MeanMetric):
    """Fraction of rows in which student's and teacher's most probable actions differ.

    Args:
        merge: Groups of actions that do the same; their probabilities are summed before the most
            probable is taken, since the choice within a group means nothing. An action in no
            group stands for itself. ``None`` merges nothing.
        **kwargs: What ``torchmetrics.Metric`` takes.

    Raises:
        ValueError: If an action is negative or in two groups.

    Example:
        >>> student, teacher = torch.eye(3)[[0, 2]], torch.eye(3)[[1, 0]]
        >>> metric = ActionDisagreement(merge=[(0, 1)])
        >>> metric.update(student, teacher)
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, merge: Sequence[Sequence[int]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        groups = [list(group) for group in merge or ()]
        actions = [action for group in groups for action in group]
        if len(set(actions)) != len(actions) or min(actions, default=0) < 0:
            raise ValueError(f"merge must hold each action once, none negative, got {groups}")
        self._representatives = {action: group[0] for group in groups for action in group}

    def update(self, student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> None:
        """Take in log-probabilities, or logits, of one batch."""
        check_shapes(student_log_probs, teacher_log_probs, "teacher_log_probs")
        num_actions = student_log_probs.shape[-1]
        if max(self._representatives, default=0) >= num_actions:
            raise ValueError(
                f"merge must name actions below {num_actions}, got {max(self._representatives)}"
            )
        names = torch.tensor(
            [self._representatives.get(action, action) for action in range(num_actions)],
            device=student_log_probs.device,
        )
        ours, theirs = (
            torch.zeros_like(policy).index_add(-1, names, policy.softmax(-1)).argmax(-1)
            for policy in (student_log_probs, teacher_log_probs)
        )
        self._add(total=(ours != theirs).sum(), count=_rows(student_log_probs))


def _rows(log_probs: Tensor) -> Tensor:
    return torch.tensor(len(log_probs), device=log_probs.device)
