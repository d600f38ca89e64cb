"""What the exact derivative costs: all projections in a loop, and several at once."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.functional import mse_loss

from lightning_sobolev import SobolevLoss, SobolevTerm
from lightning_sobolev._files import write_json, write_text
from lightning_sobolev._progress import progress_bar
from lightning_sobolev.experiments.benchmark.models import Workload
from lightning_sobolev.loss.at_once import AT_ONCE

log = logging.getLogger(__name__)

Row = dict[str, Any]
_ALL: dict[str, Any] = {"projection": "basis", "num_projections": None}
_WAYS: dict[str, tuple[dict[str, Any], int | None] | None] = {
    "plain": None,
    "one": ({}, 1),
    "eight": ({"num_projections": 8}, 1),
    "loop": (_ALL, 1),
    "at_once": (_ALL, AT_ONCE),
    "more_at_once": (_ALL, 4 * AT_ONCE),
    "default": (_ALL, None),
}
_INTRO = f"""# Exact derivatives

Made by `python scripts/benchmark.py study=exact`; `conf/study/exact.yaml` lists what can be set.
Milliseconds of processor time of a training step by Adam in a plain loop, batch {{batch}},
{{threads}} thread(s) of torch {{torch}}, tape; the median of {{rounds}} steps, all ways in turns.
*Plain*: values alone. *One*, *eight*: so many random cotangents. *Loop*, *at once* and *more at
once*: all cotangents, with `at_once=1`, `at_once={AT_ONCE}` and `at_once={4 * AT_ONCE}`.
*Default*: what `at_once=None` has measured and chosen in its first step, which is not counted.
"""


def _dense(outputs: int) -> nn.Module:
    hidden = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def _convolutional(outputs: int) -> nn.Module:
    convs = [nn.Conv2d(3, 16, 3, 2), nn.SiLU(), nn.Conv2d(16, 32, 3, 2), nn.SiLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(32 * 7 * 7, outputs))


_NETWORKS = {"tutorial": (_dense, (2,)), "conv": (_convolutional, (3, 32, 32))}


def _steps(workload: Workload, way: str) -> tuple[Callable[[], float], SobolevLoss | None]:
    (student, teacher), batch, asked = workload.networks(), workload.batch(), _WAYS[way]
    term, at_once = asked or ({}, None)
    loss_fn = SobolevLoss(teacher, SobolevTerm(**term), at_once=at_once) if asked else None
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)

    def step() -> float:
        began = time.process_time()
        if loss_fn is None:
            loss = mse_loss(student(batch["x"]), batch["y"])
        else:
            with loss_fn.observe(student):
                loss = mse_loss(student(batch["x"]), batch["y"])
            loss = loss + loss_fn()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    return step, loss_fn


def _measured(name: str, outputs: int, cfg: Any) -> Row:
    make, shape = _NETWORKS[name]
    workload = Workload(name, partial(make, outputs), shape, cfg.batch)
    ways = {way: _steps(workload, way) for way in _WAYS}
    turns: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(cfg.rounds + 1):
        for way, (step, _loss) in ways.items():
            turns[way].append(step())
    milliseconds = {way: 1e3 * median(turns[way][1:]) for way in ways}  # the first warms up
    default = ways["default"][1]
    assert default is not None
    chosen = default.at_once.chosen.get("order_1", 1)
    return {"network": name, "outputs": outputs, **milliseconds, "chosen": chosen}


def run_exact(cfg: DictConfig) -> Path:
    """Measure every network with every number of outputs; write rows and their table."""
    path, rows = Path(cfg.out) / "exact.json", []
    torch.set_num_threads(cfg.threads)
    settings = {"torch": torch.__version__, "threads": cfg.threads, "rounds": cfg.rounds}
    settings |= {"batch": cfg.batch}
    turns = len(_NETWORKS) * len(cfg.outputs)
    with progress_bar("exact", turns, enabled=cfg.progress is not False) as advance:
        for name in _NETWORKS:
            for outputs in cfg.outputs:
                rows.append({**_measured(name, outputs, cfg), "settings": settings})
                log.info("%s", rows[-1])
                write_json(path, rows)
                advance(1, name)
    head = ["network", "outputs", *(way.replace("_", " ") for way in _WAYS), "chosen"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [f"{row[way]:.3g}" for way in _WAYS]
        lines.append([row["network"], str(row["outputs"]), *numbers, str(row["chosen"])])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(path.with_suffix(".md"), _INTRO.format(**settings) + "\n" + table)
    return path.with_suffix(".md")
