"""The same points given to the packages people use: JENN, and SMT's kriging (extra ``bench``)."""

import logging
import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
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
from lightning_sobolev.experiments.common.module import QUIET
from lightning_sobolev.experiments.common.optimizers import line_search
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches, Table

log = logging.getLogger(__name__)

Columns = dict[str, Tensor]
Predict = Callable[[Tensor], Tensor]
"""Maps ``[points, dim]`` to ``[points]``."""
Fit = Callable[[Columns, int, float], Predict]
"""From points, a seed, and processor seconds of a training that has no end of its own."""

ADAM_STEPS = 3000
_MANY = 1000  # from here on one seed is enough


@dataclass(frozen=True)
class Cell:
    """One fit: a function known at random points of its domain, and a method; both seeded."""

    function: str
    dim: int
    points: int
    method: str
    seed: int

    def tables(self) -> tuple[Columns, Columns]:
        """Return training points and test points, standardized by the former, in float64."""
        data = LandscapeDataModule(
            self.function, self.points, dim=self.dim, seed=self.seed,
            num_test_points=2000, dtype=torch.float64,
        )  # fmt: skip
        return data.train_points.columns, data.test_points().columns


Cells = dict[Cell, Mapping[Any, Any]]
OUTCOME = ("limit_seconds", "outcome", "rmse", "fit_seconds", "predict_seconds")
COLUMNS = [*(field.name for field in fields(Cell)), *OUTCOME]


def _jenn(table: Columns, seed: int, _budget: float) -> Predict:
    """Fit JENN's network of 12 x 12 tanh units, with its own settings; SMT's GENN is the same."""
    x, y, dydx = (table[name].numpy() for name in ("x", "y", "dydx"))
    network = _package("jenn").NeuralNet([x.shape[1], 12, 12, 1])
    network.fit(x.T, y[None], dydx.T[None], random_state=seed)
    return lambda at: torch.from_numpy(np.asarray(network.predict(at.numpy().T))[0])


def _kriging(table: Columns, seed: int, _budget: float, *, gradients: bool = False) -> Predict:
    """Fit kriging; with gradients by partial least squares: two components, one extra point."""
    x, y, dydx = (table[name].numpy() for name in ("x", "y", "dydx"))
    smt = _package("smt.surrogate_models")
    settings: dict[str, Any] = {"print_global": False, "seed": seed}
    if gradients:
        settings |= {"xlimits": np.stack([x.min(0), x.max(0)], 1), "n_comp": min(2, x.shape[1])}
    model = smt.GEKPLS(extra_points=1, **settings) if gradients else smt.KRG(**settings)
    for index in range(x.shape[1] if gradients else 0):
        model.set_training_derivatives(x, dydx[:, index][:, None], index)
    model.set_training_values(x, y[:, None])
    model.train()
    return lambda at: torch.from_numpy(model.predict_values(at.numpy())[:, 0])


def _package(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra 'bench'") from error


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
    callbacks: list[pl.Callback] = []
    # A line search needs the same function at every evaluation: every direction, none drawn.
    projection: dict[str, Any] = {} if adam else {"projection": "basis", "num_projections": None}
    if adam:
        schedule = partial(CosineAnnealingLR, T_max=steps)
        module = RegressionModule(net, partial(torch.optim.Adam, lr=3e-3, fused=True), schedule)
    else:
        module = RegressionModule(net, line_search)
        end = time.thread_time() + budget  # Lightning's Timer goes by the clock on the wall

        def stop(trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = time.thread_time() >= end

        callbacks = [pl.callbacks.LambdaCallback(on_train_batch_end=stop)]
    if order > 0:
        weighed = zip(range(1, order + 1), (1.0, 0.1), strict=False)
        terms = [SobolevTerm(order=n, weight=weight, **projection) for n, weight in weighed]
        teacher = BatchTeacher(jacobian="dydx", hessian="hessian" if order == 2 else None)
        callbacks += [SobolevCallback(teacher, SobolevSpec(terms=terms), module="net")]
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, callbacks=callbacks, **QUIET)
    trainer.fit(module, ResumableLoader(rows, ShuffledBatches(len(rows), batch, steps, seed=seed)))
    return torch.no_grad()(lambda x: module.eval().net(x.to(dtype)).double())


METHODS: dict[str, Fit] = {
    "jenn": _jenn,
    "krg": _kriging,
    "gekpls": partial(_kriging, gradients=True),
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
    """Return the outcome in a child process: fitted, failed, or the limit met (time or memory)."""
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
    resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)
    # The soft limit ends the process by a signal that the parent can tell from others.
    end = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))
    try:
        sender.send({"outcome": "fitted", **measure(cell, budget)})
    except Exception as error:
        full = isinstance(error, RuntimeError) and "memory" in str(error)
        outcome = "memory" if full or isinstance(error, MemoryError) else "failed"
        sender.send({"outcome": outcome, "error": f"{type(error).__name__}: {error}"})


def run_baselines(cfg: DictConfig) -> Path:
    """Measure every cell of the configuration; write ``peers.csv`` after each, and ``peers.md``."""
    if unknown := set(cfg.methods) - set(METHODS):
        raise ValueError(f"methods must be among {list(METHODS)}, got {sorted(unknown)}")
    path = Path(cfg.out) / "peers.csv"
    done: Cells = {}
    if path.is_file() and not cfg.fresh:
        for record in pd.read_csv(path).to_dict("records"):
            done[Cell(**{field.name: record[field.name] for field in fields(Cell)})] = record
    for cell in _cells(cfg):
        if cell in done:
            continue
        budget, found = _budget(done, cell, cfg.budget_seconds), {"outcome": "not tried"}
        if budget is not None and not _failed_before(done, cell):
            found = measure_apart(cell, budget, seconds=cfg.limit_seconds, gib=cfg.limit_gib)
        log.info("%s: %s", cell, found)
        done[cell] = {**asdict(cell), "limit_seconds": cfg.limit_seconds, **found}
        with whole(path) as writing:
            frame = pd.DataFrame(list(done.values()), columns=COLUMNS)
            frame.to_csv(writing, index=False, float_format="%.6g")
    return write_table(path.with_suffix(".md"), pd.read_csv(path), cfg)


def _cells(cfg: DictConfig) -> Iterator[Cell]:
    """Yield small problems first: a method that fails there is not asked for more."""
    for points, dim, function in product(cfg.points, cfg.dims, cfg.functions):
        seeds = cfg.seeds if points < _MANY else cfg.seeds_of_many
        for seed, method in product(seeds, cfg.methods):
            yield Cell(function, dim, points, method, seed)


def _budget(done: Cells, cell: Cell, seconds: float) -> float | None:
    """Return the processor time of a training; None where it shall be JENN's, who has none."""
    if not cell.method.endswith("_jenn_time"):
        return seconds
    jenn = done.get(replace(cell, method="jenn"), {"outcome": "not tried"})
    return float(jenn["fit_seconds"]) if jenn["outcome"] == "fitted" else None


def _failed_before(done: Cells, cell: Cell) -> bool:
    failed = [other for other, record in done.items() if record["outcome"] != "fitted"]
    smaller = [other for other in failed if other.points < cell.points]
    return any(replace(other, points=cell.points, seed=cell.seed) == cell for other in smaller)


_INTRO = """# peers

Test RMSE in standard deviations of the function over the test points (1: their mean), mean ± \
standard error over seeds, and in brackets processor seconds of the fit on one core; made by \
`scripts/benchmark.py study=baselines`. Limits: {0.limit_seconds:g} s and {0.limit_gib:g} GiB a \
fit. L-BFGS ends after {0.budget_seconds:g} s; `order1_jenn_time` after JENN's own time. Not \
tried: the method, or JENN for its time, did not finish with as many points or fewer; empty: not \
measured.
"""
_PREDICTING = """## Predicting 2,000 points

Processor milliseconds, mean over functions, numbers of inputs and seeds.
"""


def write_table(path: Path, frame: pd.DataFrame, cfg: Any) -> Path:
    """Write one table a function: the error and, in brackets, the seconds of the fit."""
    methods = list(frame["method"].unique())
    parts = [_INTRO.format(cfg)]
    for function, own in frame.groupby("function", sort=False):
        shown = own.groupby(["dim", "points", "method"])[list(OUTCOME)].apply(_shown)
        shown = shown.unstack(fill_value="").reindex(columns=methods)
        parts += [f"## {function}\n", _markdown(shown)]
    predictions = frame.groupby(["method", "points"])["predict_seconds"].mean().unstack()
    shown = predictions.loc[methods].mul(1000).map("{:.3g}".format).replace("nan", "")
    write_text(path, "\n".join([*parts, _PREDICTING, _markdown(shown)]))
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
    return str(frame.reset_index().to_markdown(index=False, disable_numparse=True)) + "\n"
