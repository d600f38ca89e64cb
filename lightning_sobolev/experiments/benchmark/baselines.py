"""The same points given to the packages people use: JENN, and SMT's kriging (extra ``bench``)."""

import logging
import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev._files import whole, write_text
from lightning_sobolev.experiments.common.optimizers import line_search
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches, Table

log = logging.getLogger(__name__)

Columns = dict[str, Tensor]
Record = dict[Any, Any]
Predict = Callable[[Tensor], Tensor]
"""Maps ``[points, dim]`` to ``[points]``."""
Fit = Callable[[Columns, int, float], Predict]
"""From points, a seed, and processor seconds of a training that has no end of its own."""

NUM_TEST_POINTS = 2000
ADAM_STEPS = 3000
_MANY = 1000  # from here on one seed is enough
_GIB = 2**30


@dataclass(frozen=True)
class Cell:
    """One fit: a function known at random points of its domain, and a method; both seeded."""

    function: str
    dim: int
    points: int
    method: str
    seed: int

    def tables(self) -> tuple[Columns, Columns]:
        """Return training points and test points, which fill the domain evenly, in float64.

        Every input and the value have zero mean and unit standard deviation over the training
        points.
        """
        data = LandscapeDataModule(
            self.function, self.points, dim=self.dim, seed=self.seed,
            num_test_points=NUM_TEST_POINTS, dtype=torch.float64,
        )  # fmt: skip
        return data.train_points.columns, data.test_points().columns


def _jenn(table: Columns, seed: int, budget: float) -> Predict:
    """Fit JENN's network of 12 x 12 tanh units, with its own settings; SMT's GENN is the same."""
    del budget
    x, y, dydx = (table[name].numpy() for name in ("x", "y", "dydx"))
    network = _package("jenn").NeuralNet([x.shape[1], 12, 12, 1])
    network.fit(x.T, y[None], dydx.T[None], random_state=seed)
    return lambda at: torch.from_numpy(np.asarray(network.predict(at.numpy().T))[0])


def _kriging(table: Columns, seed: int, budget: float) -> Predict:
    """Fit ordinary kriging, with its own settings, to the values."""
    del budget
    return _trained(_package("smt.surrogate_models").KRG(print_global=False, seed=seed), table)


def _gradient_kriging(table: Columns, seed: int, budget: float) -> Predict:
    """Fit gradient-enhanced kriging with partial least squares: two components, one extra point."""
    del budget
    x = table["x"].numpy()
    settings = {"xlimits": np.stack([x.min(0), x.max(0)], 1), "n_comp": min(2, x.shape[1])}
    gekpls = _package("smt.surrogate_models").GEKPLS
    model = gekpls(print_global=False, seed=seed, extra_points=1, **settings)
    for index in range(x.shape[1]):
        model.set_training_derivatives(x, table["dydx"][:, index].numpy()[:, None], index)
    return _trained(model, table)


def _trained(model: Any, table: Columns) -> Predict:
    model.set_training_values(table["x"].numpy(), table["y"].numpy()[:, None])
    model.train()
    return lambda at: torch.from_numpy(model.predict_values(at.numpy())[:, 0])


def _package(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra 'bench'") from error


class _StopAfter(pl.Callback):
    """Stops at a step's end; Lightning's Timer goes by the wall clock, which others move."""

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = time.thread_time() >= self._end


def _network(
    table: Columns, seed: int, budget: float, *, order: int, adam: bool = False, sine: bool = False
) -> Predict:
    # L-BFGS takes all points in float64 until its time is up, Adam 3,000 batches in float32.
    pl.seed_everything(seed, verbose=False)
    dtype = torch.float32 if adam else torch.float64
    names = ("x", "y", "dydx", "hessian")[: order + 2]
    rows = Table({name: table[name].to(dtype) for name in names})
    steps, batch = (ADAM_STEPS, 128) if adam else (10**6, len(rows))
    net = mlp(rows.columns["x"].shape[1], width=64, activation="sine" if sine else "tanh").to(dtype)
    if adam:
        schedule = partial(CosineAnnealingLR, T_max=steps)
        module = RegressionModule(net, partial(torch.optim.Adam, lr=3e-3, fused=True), schedule)
    else:
        module = RegressionModule(net, line_search)
    callbacks: list[pl.Callback] = [] if adam else [_StopAfter(budget)]
    if order > 0:
        teacher = BatchTeacher(jacobian="dydx", hessian="hessian" if order == 2 else None)
        callbacks += [SobolevCallback(teacher, _spec(order, exact=not adam), module="net")]
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(rows, ShuffledBatches(len(rows), batch, steps, seed=seed)))
    return torch.no_grad()(lambda x: module.eval().net(x.to(dtype)).double())


def _spec(order: int, *, exact: bool) -> SobolevSpec:
    # A line search needs the same function at every evaluation: every direction, none drawn.
    projection: dict[str, Any] = {"projection": "basis", "num_projections": None} if exact else {}
    weights = {1: 1.0, 2: 0.1}
    return SobolevSpec(
        terms=[SobolevTerm(order=n, weight=weights[n], **projection) for n in range(1, order + 1)]
    )


METHODS: dict[str, Fit] = {
    "jenn": _jenn,
    "krg": _kriging,
    "gekpls": _gradient_kriging,
    "values": partial(_network, order=0),
    "order1": partial(_network, order=1),
    "order1_sine": partial(_network, order=1, sine=True),
    "order1_adam": partial(_network, order=1, adam=True),
    "order2": partial(_network, order=2),
    "order1_jenn_time": partial(_network, order=1),
}
"""Packages first; ours by the highest order matched, by L-BFGS with tanh unless named otherwise."""


def measure(cell: Cell, budget: float) -> dict[str, float]:
    """Fit and predict; errors are in standard deviations of the function over the test points."""
    table, test = cell.tables()
    # Not process_time: under a limit of processor time its clock moves in steps of milliseconds.
    began = time.thread_time()
    predict = METHODS[cell.method](table, cell.seed, budget)
    fitted = time.thread_time()
    found = predict(test["x"])
    predicted = time.thread_time()
    error = (found - test["y"]).square().mean().sqrt() / test["y"].std(correction=0)
    seconds = {"fit_seconds": fitted - began, "predict_seconds": predicted - fitted}
    return {"rmse": float(error), **seconds}


def measure_apart(cell: Cell, budget: float, *, seconds: float, gib: float) -> dict[str, Any]:
    """Return the outcome in a child process, which can be limited and stopped.

    It is ``fitted``, with the numbers; ``time`` or ``memory``, the limit that was met; or
    ``failed``, with the ``error``.
    """
    # A server that has imported everything once: a child then starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, cell, budget, seconds, gib))
    child.start()
    sender.close()
    try:
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        answer = {}
    child.join()
    if child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"outcome": "time"}
    return answer or {"outcome": "failed", "error": f"exit code {child.exitcode}"}


def _child(sender: Connection, cell: Cell, budget: float, seconds: float, gib: float) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (int(gib * _GIB),) * 2)
    # The soft limit ends the process by a signal that the parent can tell from others.
    end = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))
    try:
        sender.send({"outcome": "fitted", **measure(cell, budget)})
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError) or "memory" in str(error)
        sender.send({"outcome": "memory" if short else "failed", "error": str(error)})
    except Exception as error:
        sender.send({"outcome": "failed", "error": f"{type(error).__name__}: {error}"})


COLUMNS = (
    "function", "dim", "points", "method", "seed", "limit_seconds", "outcome", "rmse",
    "fit_seconds", "predict_seconds",
)  # fmt: skip


def run_baselines(cfg: DictConfig) -> Path:
    """Measure every cell of the configuration; write ``peers.csv`` after each, then ``peers.md``.

    Args:
        cfg: See ``conf/study/baselines.yaml``.

    Returns:
        The table.

    Raises:
        ValueError: If a method has no such name.
    """
    if unknown := set(cfg.methods) - set(METHODS):
        raise ValueError(f"methods must be among {list(METHODS)}, got {sorted(unknown)}")
    path = Path(cfg.out) / "peers.csv"
    records: list[Record] = []
    if path.is_file() and not cfg.fresh:
        records = pd.read_csv(path).to_dict("records")
    for cell in _cells(cfg):
        known = asdict(cell)
        if _matching(records, **known):
            continue
        budget, found = _budget(records, cell, cfg.budget_seconds), {"outcome": "not tried"}
        if budget is not None and not _failed_before(records, cell):
            found = measure_apart(cell, budget, seconds=cfg.limit_seconds, gib=cfg.limit_gib)
        log.info("%s: %s", cell, found)
        records.append({**known, "limit_seconds": cfg.limit_seconds, **found})
        with whole(path) as writing:
            frame = pd.DataFrame(records, columns=COLUMNS)
            frame.to_csv(writing, index=False, float_format="%.6g")
    return write_table(path.with_suffix(".md"), pd.read_csv(path), cfg)


def _cells(cfg: DictConfig) -> Iterator[Cell]:
    """Yield small problems first: a method that fails there is not asked for more."""
    for points, dim, function in product(cfg.points, cfg.dims, cfg.functions):
        seeds = cfg.seeds if points < _MANY else cfg.seeds_of_many
        for seed, method in product(seeds, cfg.methods):
            yield Cell(function, dim, points, method, seed)


def _matching(records: list[Record], **wanted: Any) -> list[Record]:
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def _budget(records: list[Record], cell: Cell, seconds: float) -> float | None:
    """Return the processor time of a training; None where it shall be JENN's, who has none."""
    if not cell.method.endswith("_jenn_time"):
        return seconds
    for record in _matching(records, **{**asdict(cell), "method": "jenn", "outcome": "fitted"}):
        return float(record["fit_seconds"])
    return None


def _failed_before(records: list[Record], cell: Cell) -> bool:
    same = _matching(records, function=cell.function, dim=cell.dim, method=cell.method)
    return any(r["points"] < cell.points and r["outcome"] != "fitted" for r in same)


def write_table(path: Path, frame: pd.DataFrame, cfg: Any) -> Path:
    """Write one table a function: the error and, in brackets, the seconds of the fit."""
    methods = list(frame["method"].unique())
    parts = [
        "# peers",
        "Test RMSE in standard deviations of the function over the test points (1: their mean), "
        "mean ± standard error over seeds, and in brackets processor seconds of the fit on one "
        "core; made by `scripts/benchmark.py study=baselines`. "
        f"Limits: {cfg.limit_seconds:g} s and {cfg.limit_gib:g} GiB a fit. "
        f"L-BFGS ends after {cfg.budget_seconds:g} s; `order1_jenn_time` after JENN's own time. "
        "Not tried: the method, or JENN for its time, did not finish with as many points or fewer; "
        "empty: not measured.",
    ]
    for function, own in frame.groupby("function", sort=False):
        shown = own.groupby(["dim", "points", "method"])[list(COLUMNS)].apply(_shown)
        shown = shown.unstack(fill_value="").reindex(columns=methods)
        parts += [f"## {function}", _markdown(shown)]
    predictions = frame.groupby(["method", "points"])["predict_seconds"].mean().unstack()
    parts += [
        f"## Predicting {NUM_TEST_POINTS:,} points",
        "Processor milliseconds, mean over functions, numbers of inputs and seeds.",
        _markdown(predictions.loc[methods].mul(1000).map("{:.3g}".format).replace("nan", "")),
    ]
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _shown(cell: pd.DataFrame) -> str:
    fitted = cell[cell["outcome"] == "fitted"]
    if fitted.empty:
        outcome, limit = cell.iloc[0][["outcome", "limit_seconds"]]
        return f"> {limit:g} s" if outcome == "time" else str(outcome)
    error = f"{fitted['rmse'].mean():.3g}"
    if not math.isnan(spread := fitted["rmse"].sem()):
        error += f" ± {spread:.2g}"
    return f"{error} ({fitted['fit_seconds'].mean():.2g})"


def _markdown(frame: pd.DataFrame) -> str:
    text: str = frame.reset_index().to_markdown(index=False, disable_numparse=True)
    return text
