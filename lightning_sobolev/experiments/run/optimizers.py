"""Optimizers of the experiments: a rate that falls to zero in known time, or a line search.

Any other optimizer works with the plugin just as well; these are what a word in a configuration
names.
"""

from collections.abc import Iterable

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

OPTIMIZERS = ("adam", "adamw", "sgd", "soap")
LINE_SEARCH = "lbfgs"


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
        raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {optimizer!r}")
    if lr <= 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    built = _build(optimizer, parameters, lr)
    schedule = CosineAnnealingLR(built, T_max=max_steps)
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _build(optimizer: str, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    if optimizer == "soap":
        from pytorch_optimizer import SOAP

        # Its own default decays the weights, which would be another regularizer to compare.
        soap: Optimizer = SOAP(parameters, lr=lr, weight_decay=0.0)
        return soap
    kinds: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
    # fused: one pass over the parameters in place of a dozen.
    return kinds[optimizer](parameters, lr=lr, fused=True)  # type: ignore[call-arg]


def line_search(
    parameters: Iterable[nn.Parameter], *, lr: float = 1.0, iterations: int = 20
) -> LBFGS:
    """Return L-BFGS with a line search under the strong Wolfe conditions.

    It is for one batch that holds all points, and for a loss that is the same function in every
    step: no dropout, exact derivatives (``num_projections=None``) rather than fresh directions. It
    needs no schedule and hardly any learning rate.

    Args:
        parameters: What is trained.
        lr: Length of the first trial along every line but the first.
        iterations: Iterations of one step; each asks for one or a few evaluations.

    Raises:
        ValueError: If ``lr`` or ``iterations`` is not positive.

    Source:
        Nocedal and Wright 2006, Numerical Optimization, algorithms 7.4 and 7.5 (L-BFGS), 3.5 and
        3.6 (line search).
    """
    if lr <= 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    # torch's own tolerances (1e-7, 1e-9) end a step long before such fits have converged.
    return LBFGS(
        parameters,
        lr=lr,
        max_iter=iterations,
        history_size=50,
        tolerance_grad=0.0,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
