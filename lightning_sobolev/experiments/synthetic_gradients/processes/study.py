"""How long sections in processes of their own wait for each other, and what accuracy is kept."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sobolev._progress import progress_bar
from lightning_sobolev.experiments.report.layouts import DECOUPLING
from lightning_sobolev.experiments.report.records import Record, read_csv, write_csv
from lightning_sobolev.experiments.report.tables import summarize, write_markdown
from lightning_sobolev.experiments.run.optimizers import cosine_decay
from lightning_sobolev.experiments.run.threads import one_thread
from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind, kind_named
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.probe import probe
from lightning_sobolev.experiments.synthetic_gradients.processes.figure import draw_waiting
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import (
    Pipeline,
    SectionReport,
)
from lightning_sobolev.experiments.synthetic_gradients.processes.processes import run_processes
from lightning_sobolev.experiments.synthetic_gradients.processes.worker import Part
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split

log = logging.getLogger(__name__)


def run_decoupling(cfg: DictConfig) -> Path:
    """Train in every way, with every delay, in turns; write a table and a picture.

    The table is written after every run.

    Args:
        cfg: See ``conf/decouple.yaml``.

    Returns:
        The table, with one line a run.

    Raises:
        ValueError: If there is nothing to run.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    runs = [
        (cfg.seed + number, delay, way)
        for number in range(cfg.rounds)
        for delay in cfg.delays
        for way in cfg.ways
    ]
    if not runs:
        raise ValueError("rounds, delays and ways must give at least one run, got none")
    path, records = out / f"{DECOUPLING.name}.csv", list[Record]()
    for seed, delay, way in runs:
        with one_thread():
            records.append(measure(cfg, seed=seed, delay=float(delay), way=str(way)))
        log.info("%s", ", ".join(f"{k} {v}" for k, v in records[-1].items()))
        write_csv(path, DECOUPLING.columns, records)
    # of the table as written: rounded twice a digit could differ from a page made of it later
    summary = summarize(DECOUPLING, read_csv(path)[1])
    write_markdown(path.with_suffix(".md"), DECOUPLING, summary, source="scripts/decouple.py")
    if find_spec("matplotlib") is None:
        log.warning("the picture is left out: matplotlib is missing, install the extra 'viz'")
    else:
        draw_waiting(path.with_suffix(".png"), summary)
    return path


def measure(cfg: DictConfig, *, seed: int, delay: float, way: str) -> Record:
    """Train once.

    Args:
        cfg: See ``conf/decouple.yaml``.
        seed: Of weights and batches.
        delay: Seconds that every pass of a section takes longer.
        way: One of ``cfg.ways``.

    Returns:
        The line of the table.
    """
    chosen = cfg.ways[way]
    kind = kind_named(chosen.kind)
    torch.manual_seed(seed)
    data, net = instantiate(cfg.data, seed=seed), instantiate(cfg.model)
    data.setup()
    sections = split(net, OmegaConf.to_object(cfg.cuts))  # type: ignore[arg-type]
    shown = cfg.pictures_of[cfg.data.images]
    shapes = activation_shapes(sections, (shown.channels, shown.size, shown.size), 10)
    models = build_models(kind, shapes, 10, instantiate(cfg.models))
    pipeline = Pipeline(
        steps=cfg.steps,
        batch_size=cfg.data.batch_size,
        room=cfg.room,
        memory=cfg.memory,
        lockstep=chosen.lockstep,
        delay=delay,
        timeout=cfg.timeout,
    )
    reports = _run(cfg, data, (sections, models), shapes, kind, pipeline, f"{way}, {delay:g} s")
    about = {"way": way, "kind": chosen.kind, "data": cfg.data.images, "sections": len(sections)}
    about |= {"delay": delay, "steps": cfg.steps, "batch_size": cfg.data.batch_size, "seed": seed}
    tested = _tested(data, sections, models, kind, cfg.probe_rows)
    return {**about, **tested, **_timed(reports, pipeline)}


def _run(
    cfg: DictConfig,
    data: Any,
    parts: tuple[list[nn.Sequential], list[nn.Module]],
    shapes: Sequence[tuple[int, ...]],
    kind: Kind,
    pipeline: Pipeline,
    title: str,
) -> list[SectionReport]:
    rates = cfg.tuned[next(name for name in cfg.tuned if kind_named(str(name)) == kind)]
    matching: Matching = instantiate(cfg.matching)
    optimize = partial(
        trained, optimizer=cfg.optimizer, lr=rates.lr, model_lr=rates.model_lr, steps=pipeline.steps
    )
    shown = 0
    enabled = cfg.progress is not False
    with progress_bar(title, pipeline.steps, enabled=enabled) as advance:

        def watch(done: Sequence[int]) -> None:
            nonlocal shown
            advance(min(done) - shown, f"sections at {', '.join(map(str, done))}")
            shown = min(done)

        return run_processes(
            *parts,
            data.train_dataloader(),
            kind=kind,
            shapes=shapes,
            optimize=optimize,
            pipeline=pipeline,
            matching=matching,
            watch=watch,
        )


def trained(
    module: nn.Module, is_model: bool, *, optimizer: str, lr: float, model_lr: float, steps: int
) -> Part:
    """Return what trains a section or a model: the optimizer of every experiment.

    Args:
        module: Its parameters.
        is_model: Whether it is a model.
        optimizer: Its name.
        lr: Learning rate of a section's first step.
        model_lr: The same of a model.
        steps: Length of the training.
    """
    built: Any = cosine_decay(
        module.parameters(),
        optimizer=optimizer,
        lr=model_lr if is_model else lr,
        max_steps=steps,
    )
    return Part(module, built["optimizer"], built["lr_scheduler"]["scheduler"])


def _timed(reports: Sequence[SectionReport], pipeline: Pipeline) -> Record:
    seconds = max(report.seconds for report in reports)
    below = [report for report in reports if report.learned]
    waiting = {
        f"waited_{name}": reports[number].waited / reports[number].seconds
        for name, number in (("lowest", 0), ("highest", -1))
    }
    return {
        **waiting,
        "waited": sum(r.waited for r in reports) / sum(r.seconds for r in reports),
        "samples_per_second": pipeline.steps * pipeline.batch_size / seconds,
        "lateness": sum(report.lateness for report in below) / max(len(below), 1),
        "forgotten": sum(report.forgotten for report in reports),
    }


def _tested(
    data: Any, sections: Sequence[nn.Module], models: Sequence[nn.Module], kind: Kind, rows: int
) -> Record:
    right = total = 0
    for section in sections:
        section.eval()
    cosine, loss = math.nan, 0.0
    for number, batch in enumerate(data.test_dataloader()):
        x, y = batch["x"], batch["y"]
        if number == 0 and models and rows:
            near = probe(sections, models, x[:rows], y[:rows], kind).values()
            cosine = sum(n.numbers()["gradient_cosine"] for n in near) / len(near)
        with torch.no_grad():
            for section in sections:
                x = section(x)
        right, total = right + int((x.argmax(-1) == y).sum()), total + len(y)
        loss += float(cross_entropy(x, y, reduction="sum"))
    return {"test_accuracy": right / total, "test_loss": loss / total, "gradient_cosine": cosine}
