"""The optimizer that every experiment uses: a learning rate that falls to zero in known time."""

from collections.abc import Iterable

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


def cosine_decay(
    parameters: Iterable[nn.Parameter], *, optimizer: str, lr: float, max_steps: int
) -> OptimizerLRScheduler:
    r"""Return an optimizer whose learning rate falls to zero along half a cosine.

    Step t uses :math:`\tfrac{1}{2} \mathrm{lr} (1 + \cos(\pi t / \mathrm{max\_steps}))`.

    Args:
        parameters: What is trained.
        optimizer: One of ``OPTIMIZERS``.
        lr: Learning rate of the first step.
        max_steps: Step at which it reaches zero.

    Returns:
        What ``LightningModule.configure_optimizers`` may return.

    Raises:
        ValueError: If the optimizer is unknown or a number is not positive.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {tuple(OPTIMIZERS)}, got {optimizer!r}")
    if lr <= 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    # fused: one pass over the parameters in place of a dozen.
    built = OPTIMIZERS[optimizer](parameters, lr=lr, fused=True)  # type: ignore[call-arg]
    schedule = CosineAnnealingLR(built, T_max=max_steps)
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
