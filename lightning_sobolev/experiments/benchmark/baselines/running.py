"""Go through all cells, smallest first; what is measured already is not measured again."""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_sobolev.experiments.benchmark.baselines.networks import METHODS
from lightning_sobolev.experiments.benchmark.baselines.problems import Problem
from lightning_sobolev.experiments.benchmark.baselines.showing import write_table
from lightning_sobolev.experiments.benchmark.baselines.worker import Limits, measure_apart
from lightning_sobolev.experiments.report.records import Record, read_csv, write_csv

log = logging.getLogger(__name__)

COLUMNS = (
    "function", "dim", "points", "method", "seed", "limit_seconds", "outcome", "rmse",
    "fit_seconds", "predict_seconds",
)  # fmt: skip
_KEYS = COLUMNS[:5]
_NO_NUMBERS = {"rmse": math.nan, "fit_seconds": math.nan, "predict_seconds": math.nan}
_JENN_TIME = "_jenn_time"
_MANY = 1000


def run_peers(cfg: DictConfig) -> Path:
    """Measure every cell of the configuration; write ``peers.csv`` after each, then ``peers.md``.

    Args:
        cfg: See ``conf/peers.yaml``.

    Returns:
        The table.

    Raises:
        ValueError: If a method has no such name.
    """
    if unknown := set(cfg.methods) - set(METHODS):
        raise ValueError(f"methods must be among {list(METHODS)}, got {sorted(unknown)}")
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "peers.csv"
    limits = Limits(seconds=cfg.limit_seconds, gib=cfg.limit_gib)
    records = [] if cfg.fresh or not path.is_file() else read_csv(path)[1]
    for problem, method in _cells(cfg):
        cell = {**asdict(problem), "method": method}
        if any(all(record[key] == cell[key] for key in _KEYS) for record in records):
            continue
        budget = _budget(records, cell, cfg.budget_seconds)
        found = {"outcome": "not tried"}
        if budget is not None and not _failed_before(records, cell):
            found = measure_apart(problem, method, budget=budget, limits=limits)
        log.info("%s: %s", cell, found)
        records.append({**cell, "limit_seconds": cfg.limit_seconds, **_NO_NUMBERS, **found})
        write_csv(path, COLUMNS, records)
    return write_table(out / "peers.md", read_csv(path)[1], cfg)


def _cells(cfg: DictConfig) -> Iterator[tuple[Problem, str]]:
    """Yield small problems first: a method that fails there is not asked for more."""
    for points in cfg.points:
        for dim in cfg.dims:
            for function in cfg.functions:
                for seed in cfg.seeds if points < _MANY else cfg.seeds_of_many:
                    problem = Problem(function=function, dim=dim, points=points, seed=seed)
                    for method in cfg.methods:
                        yield problem, method


def _budget(records: list[Record], cell: dict[str, Any], seconds: float) -> float | None:
    """Return the processor time of a training; None where it shall be JENN's, who has none."""
    if not cell["method"].endswith(_JENN_TIME):
        return seconds
    wanted = {**cell, "method": "jenn"}
    for record in records:
        if all(record[key] == wanted[key] for key in _KEYS) and record["outcome"] == "fitted":
            return float(record["fit_seconds"])
    return None


def _failed_before(records: list[Record], cell: dict[str, Any]) -> bool:
    same = ("function", "dim", "method")
    return any(
        record["outcome"] != "fitted"
        and float(record["points"]) < cell["points"]
        and all(record[key] == cell[key] for key in same)
        for record in records
    )
