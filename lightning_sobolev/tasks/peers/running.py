"""Go through all cells, smallest first; what is measured already is not measured again."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_sobolev.tasks.peers.networks import METHODS
from lightning_sobolev.tasks.peers.problems import Problem
from lightning_sobolev.tasks.peers.showing import write_table
from lightning_sobolev.tasks.records import Record, read_csv, write_csv

log = logging.getLogger(__name__)

COLUMNS = (
    "function", "dim", "points", "method", "seed", "limit_seconds", "outcome", "rmse",
    "fit_seconds", "predict_seconds",
)  # fmt: skip
_KEYS = COLUMNS[:5]
_JENN_TIME = "_jenn_time"


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
    records = [] if cfg.fresh or not path.is_file() else read_csv(path)[1]
    for problem, method in _cells(cfg):
        cell = {**asdict(problem), "method": method}
        if any(all(record[key] == cell[key] for key in _KEYS) for record in records):
            continue
        budget = _budget(records, cell, cfg.budget_seconds)
        found = {"outcome": "not tried"} if budget is None or _failed_before(records, cell) else (
            _measured(problem, method, budget, cfg)
        )  # fmt: skip
        log.info("%s: %s", cell, found)
        empty = {"rmse": math.nan, "fit_seconds": math.nan, "predict_seconds": math.nan}
        records.append({**cell, "limit_seconds": cfg.limit_seconds, **empty, **found})
        write_csv(path, COLUMNS, records)
    return write_table(out / "peers.md", read_csv(path)[1], cfg)


def _cells(cfg: DictConfig) -> Iterator[tuple[Problem, str]]:
    """Yield small problems first: a method that fails there is not asked for more."""
    for points in cfg.points:
        for dim in cfg.dims:
            for function in cfg.functions:
                for seed in cfg.seeds[points]:
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


def _measured(problem: Problem, method: str, budget: float, cfg: DictConfig) -> dict[str, Any]:
    given = {
        "problem": asdict(problem),
        "method": method,
        "budget": budget,
        "limit_seconds": cfg.limit_seconds,
        "limit_gib": cfg.limit_gib,
    }
    done = subprocess.run(
        [sys.executable, "-m", "lightning_sobolev.tasks.peers.worker", json.dumps(given)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"outcome": "time"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        log.warning("%s on %s: %s", method, problem, last)
        return {"outcome": "failed"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
