"""Measure workloads one after the other; what is measured already is not measured again."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lightning_sobolev._files import write_json
from lightning_sobolev.experiments.benchmark.arithmetic import limits
from lightning_sobolev.experiments.benchmark.measuring import Contestant, alternate, quiet
from lightning_sobolev.experiments.benchmark.methods import METHODS
from lightning_sobolev.experiments.benchmark.showing import save_charts, write_table
from lightning_sobolev.experiments.benchmark.workloads import WORKLOADS, Workload

log = logging.getLogger(__name__)

Row = dict[str, Any]
REFERENCES = ("plain", "distillation", "at_best")
"""Methods that every workload needs: what others are compared with, and the arithmetic limit."""


def run_benchmark(cfg: DictConfig) -> Path:
    """Measure every workload of the configuration and write rows, table and charts.

    ``speed.json`` is written after each workload; a second call measures what is missing or was
    measured with other settings.

    Args:
        cfg: See ``conf/benchmark.yaml``.

    Returns:
        The table.

    Raises:
        ValueError: If a workload or a method has no such name.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(cfg.threads)
    plan = _plan(cfg)
    rows = [] if cfg.fresh else _read(out / "speed.json")
    for name, methods in plan.items():
        settings = _settings(cfg, methods)
        if any(_is_of(row, name) and row["settings"] == settings for row in rows):
            log.info("%s is measured already", name)
            continue
        log.info("%s: %s", name, ", ".join(methods))
        measured = [{**row, "settings": settings} for row in measure(WORKLOADS[name], methods, cfg)]
        rows = [row for row in rows if not _is_of(row, name)] + measured
        write_json(out / "speed.json", rows)
    save_charts(out, rows)
    return write_table(out / "speed.md", rows)


def measure(workload: Workload, methods: Sequence[str], cfg: Any) -> list[Row]:
    """Measure one workload by several methods that take turns.

    Args:
        workload: What is trained.
        methods: Names in ``METHODS``, :data:`REFERENCES` among them.
        cfg: Has ``accelerator``, ``clock``, ``rounds`` and ``seconds``.

    Returns:
        A row for each method, also for one that cannot train this network.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        ready, refused = {}, {}
        for name in methods:
            try:
                built = METHODS[name].build(workload, Path(folder))
                ready[name] = Contestant(
                    workload, built, accelerator=cfg.accelerator, clock=cfg.clock
                )
                ready[name].fit(1)
            except (RuntimeError, ValueError) as error:
                refused[name] = str(error).splitlines()[0]
                ready.pop(name, None)
        times = alternate(ready, rounds=cfg.rounds, seconds=cfg.seconds)
        flops = {name: ready[METHODS[name].counted_as or name].flops() for name in ready}
        peaks = {name: one.peak_bytes() for name, one in ready.items()}
    common = {"network": workload.network, "batch": workload.batch_size, "device": cfg.accelerator}
    rows = [
        {**common, "method": name, **_numbers(name, times, flops), "peak_bytes": peaks[name]}
        for name in ready
    ]
    return rows + [{**common, "method": name, "refused": why} for name, why in refused.items()]


def _numbers(name: str, times: Mapping[str, list[float]], flops: Mapping[str, int]) -> Row:
    fewest = limits(*(flops[reference] for reference in REFERENCES))
    allowed = fewest[METHODS[name].objective] / flops["distillation"]
    numbers: Row = {"median_seconds": median(times[name]), "flops": flops[name]}
    for key, reference, factor in (
        ("ratio_to_plain", "plain", 1.0),
        ("ratio_to_distillation", "distillation", 1.0),
        ("ratio_to_best_by_hand", "at_best", 1.0),
        ("ratio_to_limit", "distillation", allowed),
    ):
        pairs = zip(times[name], times[reference], strict=True)
        # Each round's own ratio: what slowed one visit down slowed its neighbours down too.
        ratios = [mine / (theirs * factor) for mine, theirs in pairs]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        numbers |= {key: middle, f"{key}_quartiles": [low, high]}
    return numbers


def _plan(cfg: DictConfig) -> dict[str, list[str]]:
    plan = {}
    for name, methods in OmegaConf.to_container(cfg.workloads).items():  # type: ignore[union-attr]
        if cfg.only is not None and name not in cfg.only:
            continue
        if name not in WORKLOADS:
            raise ValueError(f"workloads must be among {list(WORKLOADS)}, got {name!r}")
        if unknown := set(methods) - set(METHODS):
            raise ValueError(f"methods must be among {list(METHODS)}, got {sorted(unknown)}")
        plan[str(name)] = list(dict.fromkeys([*REFERENCES, *methods]))
    return plan


def _settings(cfg: DictConfig, methods: Sequence[str]) -> Row:
    keys = ("accelerator", "clock", "rounds", "seconds", "threads")
    return {**{key: cfg[key] for key in keys}, "methods": list(methods), "torch": torch.__version__}


def _is_of(row: Row, workload: str) -> bool:
    return f"{row['network']}-{row['batch']}" == workload


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    rows: list[Row] = json.loads(path.read_text())
    return rows
