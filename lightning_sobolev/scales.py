"""What a term is divided by, so that one weight serves targets of every size."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class RunningScales:
    """Running mean of each term's reference: plain at first, exponential after ``memory`` batches.

    Args:
        memory: Batches after which old ones begin to fade.
        state: Mean and number of batches seen, by term.
    """

    memory: int = 100
    state: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def update(self, key: str, batch_mean: Tensor) -> Tensor:
        """Take in one batch's mean.

        Returns:
            The new scale.

        Raises:
            ValueError: If the targets were zero from the first batch on: nothing to divide by.
        """
        mean, count = self.state.get(key, (torch.zeros_like(batch_mean), 0))
        count += 1
        mean = mean.to(batch_mean) + (batch_mean - mean.to(batch_mean)) / min(count, self.memory)
        # Looking at a number makes everybody wait: only where a constant target can show itself.
        if count == 1 and not float(mean) > 0.0:
            raise ValueError(
                f"the target of term {key!r} must not vanish when normalize='target', got a mean "
                f"of {float(mean)}; use normalize='none' if a zero derivative is what you teach"
            )
        self.state[key] = (mean.detach(), count)
        return mean.detach()
