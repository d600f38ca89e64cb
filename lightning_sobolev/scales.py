"""What a term is divided by, so that one weight serves targets of every size."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(slots=True)
class RunningScales:
    """Running mean of each term's reference: plain at first, exponential after ``memory``."""

    memory: int = 100
    state: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def update(self, key: str, batch_mean: Tensor) -> Tensor:
        """Take in one batch's mean."""
        mean, count = self.state.get(key, (torch.zeros_like(batch_mean), 0))
        count += 1
        mean = mean.to(batch_mean) + (batch_mean - mean.to(batch_mean)) / min(count, self.memory)
        # Looking at a number makes everybody wait: only where a constant target can show itself.
        if count == 1 and not float(mean.sum()) > 0.0:
            raise ValueError(
                f"the target of term {key!r} must not vanish when it is normalized, "
                f"got a mean of {float(mean.sum())}; use normalize='none' if a zero derivative is "
                "what you teach"
            )
        self.state[key] = (mean.detach(), count)
        return mean.detach()


def by_element(
    errors: Float[Tensor, " elements"], scales: Float[Tensor, " elements"]
) -> Float[Tensor, ""]:
    r"""Return :math:`\frac1D \sum_j e_j / \max(s_j, 10^{-4}\,\bar s)`.

    An element whose target is zero, or nearly so, is held to zero with at most 10,000 times the
    weight of an ordinary one: it neither vanishes from the term nor takes it over. The bound
    compares elements, so inputs should be in comparable units.
    """
    return (errors / torch.maximum(scales, 1e-4 * scales.mean())).mean()
