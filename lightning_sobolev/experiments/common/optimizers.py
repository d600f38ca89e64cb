"""How experiments are optimized: factories that a configuration fills in, and a line search."""

from collections.abc import Callable, Iterable

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_sobolev._checks import require

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Makes an optimizer of parameters, as ``functools.partial(torch.optim.Adam, lr=1e-3)`` does."""
SchedulerFactory = Callable[[Optimizer], LRScheduler]
"""Makes a schedule of an optimizer's learning rate, which advances with every step."""


def configured(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None = None,
) -> OptimizerLRScheduler:
    """Return what ``LightningModule.configure_optimizers`` returns."""
    built = optimizer(parameters)
    if scheduler is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler(built), "interval": "step"}}


def line_search(
    parameters: Iterable[nn.Parameter], *, lr: float = 1.0, iterations: int = 20
) -> LBFGS:
    """Return L-BFGS with a line search under the strong Wolfe conditions.

    It is for one batch that holds all points, and for a loss that is the same function in every
    step: no dropout, exact derivatives (``num_projections=None``) rather than fresh directions.

    Source:
        Nocedal and Wright 2006, Numerical Optimization, algorithms 7.4 and 7.5 (L-BFGS), 3.5 and
        3.6 (line search).
    """
    require(lr > 0, "lr", "positive", lr)
    require(iterations >= 1, "iterations", "at least 1", iterations)
    if torch.distributed.is_initialized() and (world := torch.distributed.get_world_size()) > 1:
        raise ValueError(
            "optimizer=lbfgs needs one process: each would search by the loss of its own rows, and "
            f"they would part; got {world}"
        )
    # torch's own tolerances (1e-7, 1e-9) end a step long before such fits have converged.
    return LBFGS(
        parameters, lr=lr, max_iter=iterations, history_size=50, tolerance_grad=0.0,
        tolerance_change=1e-12, line_search_fn="strong_wolfe",
    )  # fmt: skip
