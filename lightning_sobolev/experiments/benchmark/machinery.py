"""What the machinery around a term costs: beside a loop by hand, in draws, in calls."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import lightning_sobolev
from lightning_sobolev import SobolevCallback, SobolevLoss, SobolevTerm
from lightning_sobolev._files import write_json, write_text
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.experiments.benchmark.models import Workload, pixels
from lightning_sobolev.experiments.benchmark.timing import Contestant
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.functional.projections import draw

log = logging.getLogger(__name__)

Row = dict[str, Any]
_WAYS: dict[str, dict[str, Any]] = {"net": {"module": "net"}, "defaults": {}}
_WATCHED = 20  # the first steps look at student and points, too
_INTRO = """# Machinery

Made by `python scripts/benchmark.py study=machinery`; `conf/study/machinery.yaml` lists what can be
set. Device cpu, {threads} thread(s) of torch {torch}, processor time; {rounds} rounds. *To hand*: a
step with the callback (one default term, no doctor) beside the best loop by hand inside Lightning,
which logs nothing and normalizes nothing; all take turns, median of each round's ratio and, in
brackets, the ratio of the fastest turns. *Share*: of a step in a plain loop, what drawing its
tangents takes, Nature-CNN at batch {pictures}. *Calls*: functions of the package that one step of
automatic optimization enters (tape, one term, a network for a teacher).
"""


class _Plain(pl.LightningModule):
    """Fits values; the callback adds the term."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net, teacher = workload.networks()
        self.teachers = [teacher]  # in a list, so that it is no submodule

    def training_step(self, batch: dict[str, Tensor], *_: Any) -> Tensor:
        return mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class _ByHand(_Plain):
    """Asks the teacher before the student has a graph, and logs nothing."""

    def training_step(self, batch: dict[str, Tensor], *_: Any) -> Tensor:
        y, point = batch["y"], batch["x"].detach().requires_grad_()
        u = torch.randint(0, 2, y.shape).float() * 2 - 1
        (target,) = torch.autograd.grad(self.teachers[0](point), point, u)
        x = batch["x"].detach().requires_grad_()
        values = self.net(x)
        (row,) = torch.autograd.grad(values, x, u, create_graph=True)
        return mse_loss(values, y) + (row - target).square().sum(1).mean()


def _workload(*, layers: int, width: int, batch: int) -> Workload:
    def make() -> nn.Module:
        net = mlp(2, 1, width=width, depth=layers - 1, activation="tanh")
        for layer in net.modules():  # torch's own let derivatives vanish in hundreds
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)
        return net

    return Workload(f"mlp_{layers}", make, (2,), batch)


def _callback(workload: Workload, **options: Any) -> Contestant:
    module = _Plain(workload)
    matching = SobolevCallback(module.teachers[0], doctor=False, **options)
    return Contestant(workload, (module, [matching]), clock="cpu")


def _student(name: str, cfg: Any, advance: Advance) -> Row:
    shape = dict(cfg.students[name])
    steps = shape.pop("steps", cfg.steps)
    workload = _workload(**shape)
    ways = {"hand": Contestant(workload, (_ByHand(workload), []), clock="cpu")}
    ways |= {way: _callback(workload, **options) for way, options in _WAYS.items()}
    turns: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(cfg.rounds):
        for way, contestant in ways.items():
            turns[way].append(contestant.seconds(steps))
        advance(1, name)
    hand = turns.pop("hand")
    row: Row = {"steps": steps, "hand_seconds": median(hand)}
    for way, own in turns.items():
        ratio = median(one / other for one, other in zip(own, hand, strict=True))
        row |= {f"{way}_to_hand": ratio, f"{way}_to_hand_min": min(own) / min(hand)}
    return row


def _draws(law: str, cfg: Any, advance: Advance) -> Row:
    workload = pixels(cfg.pictures.batch)
    (student, teacher), batch = workload.networks(), workload.batch()
    loss_fn = SobolevLoss(teacher, SobolevTerm(side="tangent", projection=law))
    generator, x = torch.Generator().manual_seed(0), batch["x"]
    seconds: list[tuple[float, float]] = []
    for _ in range(1 + cfg.pictures.steps):
        began = time.process_time()
        with loss_fn.observe(student):
            value = mse_loss(student(x), batch["y"])
        (value + loss_fn()).backward()  # type: ignore[no-untyped-call]
        student.zero_grad()
        stepped = time.process_time()
        draw(law, x.shape, num_projections=1, generator=generator, dtype=x.dtype)
        seconds.append((stepped - began, time.process_time() - stepped))
    advance(1, law)
    steps, draws = zip(*seconds[1:], strict=True)
    share = median(one / step for step, one in seconds[1:])
    return {"step_seconds": median(steps), "draw_seconds": median(draws), "share": share}


class _Watch(pl.Callback):
    """Notes the files of the functions that are entered from one step's start to the next's."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def on_train_batch_start(self, *given: Any) -> None:
        if given[-1] in (_WATCHED, _WATCHED + 1):
            sys.setprofile(self._note if given[-1] == _WATCHED else None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        root, file = os.path.dirname(lightning_sobolev.__file__), frame.f_code.co_filename
        if event == "call" and file.startswith(f"{root}/"):
            self.files += [] if file.startswith(f"{root}/experiments/") else [file]


def _calls(_name: str, _cfg: Any, advance: Advance) -> Row:
    watch, before = _Watch(), sys.getprofile()
    try:
        _callback(_workload(layers=2, width=8, batch=8), engine="tape").fit(_WATCHED + 2, watch)
    finally:
        sys.setprofile(before)
    advance(1)
    return {"calls": len(watch.files), "files": len(set(watch.files))}


def run_machinery(cfg: DictConfig) -> Path:
    """Measure every part; write rows after each, and their tables."""
    path, rows = Path(cfg.out) / "machinery.json", []
    torch.set_num_threads(cfg.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {"device": "cpu", "torch": torch.__version__, "pictures": cfg.pictures.batch}
    settings |= {"threads": cfg.threads, "rounds": cfg.rounds}
    plan: dict[str, Callable[[str, Any, Advance], Row]] = dict.fromkeys(cfg.students, _student)
    plan |= {"sphere": _draws, "rademacher": _draws, "calls": _calls}
    turns = cfg.rounds * len(cfg.students) + len(plan) - len(cfg.students)
    with progress_bar("machinery", turns, enabled=cfg.progress is not False) as advance:
        for name, part in plan.items():
            rows.append({"name": name, **part(name, cfg, advance), "settings": settings})
            log.info("%s", rows[-1])
            write_json(path, rows)
    write_text(path.with_suffix(".md"), "\n".join([_INTRO.format(**settings), *_tables(rows)]))
    return path.with_suffix(".md")


def _tables(rows: list[Row]) -> list[str]:
    students = ['student | by hand, ms | `module="net"` to hand | defaults to hand']
    draws, calls = ["tangents | a step, ms | drawing, ms | share"], ["calls | files"]
    for row in rows:
        if "hand_seconds" in row:
            ratios = [f"{row[f'{w}_to_hand']:.3f} ({row[f'{w}_to_hand_min']:.3f})" for w in _WAYS]
            students += [" | ".join([row["name"], f"{1e3 * row['hand_seconds']:.3g}", *ratios])]
        elif "share" in row:
            seconds = [f"{1e3 * row[key]:.3g}" for key in ("step_seconds", "draw_seconds")]
            draws += [" | ".join([row["name"], *seconds, f"{row['share']:.1%}"])]
        else:
            calls += [f"{row['calls']} | {row['files']}"]
    for table in (students, draws, calls):
        table.insert(1, " | ".join(["---"] * (1 + table[0].count("|"))))
    return ["".join(f"| {line} |\n" for line in table) for table in (students, draws, calls)]
