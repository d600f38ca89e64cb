"""Our side: an ordinary LightningModule, taught by a callback."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.experiments.benchmark.baselines.packages import (
    Predict,
    fit_gradient_kriging,
    fit_jenn,
    fit_kriging,
)
from lightning_sobolev.experiments.benchmark.baselines.packages import Table as Columns
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches, Table

Fit = Callable[[Columns, int, float], Predict]
_WIDTH = 64
_ADAM_STEPS, _ADAM_BATCH, _ADAM_RATE = 3000, 128, 3e-3
_WEIGHT_2 = 0.1


class StopAfter(pl.Callback):
    """Ends a training when it has used up its processor time.

    Args:
        seconds: Of this thread, from the beginning of the fit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock."""
        del trainer, pl_module, stage
        self._started = time.thread_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Look at the clock."""
        del pl_module
        if time.thread_time() - self._started >= self.seconds:
            trainer.should_stop = True


def fit_network(
    table: Columns,
    seed: int,
    budget: float,
    *,
    order: int,
    optimizer: str = "lbfgs",
    activation: str = "tanh",
) -> Predict:
    """Fit a network of 2 x 64 units through a ``SobolevCallback``.

    Args:
        table: Points with values, gradients and, for order 2, Hessians.
        seed: Of the first weights.
        budget: Processor seconds after which L-BFGS ends; it then is at the end of a step. Adam
            makes its 3,000 steps.
        order: Highest derivative that is matched, 0 to 2.
        optimizer: ``lbfgs`` on all points at once in float64, or ``adam`` on batches in float32.
        activation: Of the hidden layers.

    Returns:
        The prediction.
    """
    pl.seed_everything(seed, verbose=False)
    whole = optimizer == "lbfgs"
    dtype = torch.float64 if whole else torch.float32
    names = ("x", "y", "dydx", "hessian")[: order + 2]
    rows = Table({name: table[name].to(dtype) for name in names})
    steps = 10**6 if whole else _ADAM_STEPS
    net = mlp(rows.columns["x"].shape[1], width=_WIDTH, activation=activation).to(dtype)
    module = RegressionModule(
        net, lr=1.0 if whole else _ADAM_RATE, max_steps=steps, optimizer=optimizer
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=_callbacks(order, budget, exact=whole),
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    batch = len(rows) if whole else _ADAM_BATCH
    trainer.fit(module, ResumableLoader(rows, ShuffledBatches(len(rows), batch, steps, seed=seed)))
    return partial(_predict, module)


def _callbacks(order: int, budget: float, *, exact: bool) -> list[pl.Callback]:
    # A line search needs the same function at every evaluation: every direction, none drawn.
    projection: dict[str, Any] = {"projection": "basis", "num_projections": None} if exact else {}
    terms = [
        SobolevTerm(order=n, weight=1.0 if n == 1 else _WEIGHT_2, **projection)
        for n in range(1, order + 1)
    ]
    callbacks: list[pl.Callback] = [StopAfter(budget)] if exact else []
    if terms:
        teacher = BatchTeacher(jacobian="dydx", hessian="hessian" if order == 2 else None)
        callbacks.append(SobolevCallback(teacher, SobolevSpec(terms=terms), module="net"))
    return callbacks


@torch.no_grad()
def _predict(module: RegressionModule, x: torch.Tensor) -> torch.Tensor:
    module.eval()
    return module.net(x.to(next(module.parameters()).dtype)).double()  # type: ignore[no-any-return]


METHODS: dict[str, Fit] = {
    "jenn": fit_jenn,
    "krg": fit_kriging,
    "gekpls": fit_gradient_kriging,
    "values": partial(fit_network, order=0),
    "order1": partial(fit_network, order=1),
    "order1_sine": partial(fit_network, order=1, activation="sine"),
    "order1_adam": partial(fit_network, order=1, optimizer="adam"),
    "order2": partial(fit_network, order=2),
    "order1_jenn_time": partial(fit_network, order=1),
}
"""Peers first; ours by the highest order matched, by L-BFGS with tanh unless the name says so."""
