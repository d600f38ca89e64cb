"""How long sections in processes of their own wait for each other, and what accuracy is kept."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from lightning_sobolev._files import whole
from lightning_sobolev._progress import progress_bar
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.train import prepare_process
from lightning_sobolev.experiments.synthetic_gradients.module import DecoupledModule
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import run_pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.settings import (
    Optimizers,
    Pipeline,
    StageReport,
)

log = logging.getLogger(__name__)

Row = dict[str, str | float]


def run_processes(cfg: DictConfig) -> Path:
    """Train in every way, with every delay, in turns; write a table and a figure.

    The table is written after every run. Hydra must be initialized: the experiment is composed.

    Args:
        cfg: See ``conf/study/processes.yaml``.

    Returns:
        The table, with one line a run.

    Raises:
        ValueError: If there is nothing to run.
    """
    runs = [
        (cfg.seed + number, float(delay), str(way))
        for number in range(cfg.rounds)
        for delay in cfg.delays
        for way in cfg.ways
    ]
    if not runs:
        raise ValueError("rounds, delays and ways must give at least one run, got none")
    path, rows = Path(cfg.out) / "decoupling.csv", list[Row]()
    for seed, delay, way in runs:
        rows.append(measure(cfg, seed=seed, delay=delay, way=way))
        log.info("%s", ", ".join(f"{key} {value}" for key, value in rows[-1].items()))
        with whole(path) as writing:
            pd.DataFrame(rows).to_csv(writing, index=False, float_format="%.6g", na_rep="nan")
    report(path, x="delay")
    return path


def measure(cfg: DictConfig, *, seed: int, delay: float, way: str) -> Row:
    """Train once.

    Args:
        cfg: See ``conf/study/processes.yaml``.
        seed: Of weights and batches.
        delay: Seconds that every pass of a section takes longer.
        way: One of ``cfg.ways``.

    Returns:
        The line of the table.
    """
    chosen = cfg.ways[way]
    settings = {"kind": chosen.kind, "seed": seed, "steps": cfg.steps, "run_dir": cfg.out}
    settings |= {"cuts": cfg.cuts, "data.num_train": cfg.num_train}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    experiment = compose("train", ["+experiment=synthetic_gradients", *overrides, *cfg.overrides])
    prepare_process(experiment)
    data, module = instantiate(experiment.data), instantiate(experiment.module)
    data.prepare_data()
    data.setup()
    pipeline = Pipeline(
        steps=cfg.steps,
        capacity=cfg.capacity,
        buffer=cfg.buffer,
        lockstep=chosen.lockstep,
        delay=delay,
        timeout=cfg.timeout,
    )
    reports = _train(module, data, pipeline, f"{way}, {delay:g} s", cfg.progress is not False)
    tested = _test(module, data)
    size = data.batch_size
    return {
        **{"way": way, "kind": chosen.kind, "data": data.images, "sections": len(reports)},
        **{"delay": delay, "steps": cfg.steps, "batch_size": size, "seed": seed},
        "test_accuracy": tested["test/accuracy"],
        "test_loss": tested["test/loss"],
        "gradient_cosine": tested.get("test/gradient_cosine", math.nan),
        **_timed(reports, cfg.steps * size),
    }


def _train(
    module: DecoupledModule, data: Any, pipeline: Pipeline, title: str, show: bool
) -> list[StageReport]:
    # no trainer runs the backward passes
    stages = [replace(stage, run_backward=Tensor.backward) for stage in module.stages]
    optimizers = Optimizers(
        section=module.optimizer, model=module.model_optimizer, scheduler=module.scheduler
    )
    shown = 0
    with progress_bar(title, pipeline.steps, enabled=show) as advance:

        def watch(done: Sequence[int]) -> None:
            nonlocal shown
            advance(min(done) - shown, f"stages at {', '.join(map(str, done))}")
            shown = min(done)

        return run_pipeline(stages, data.train_dataloader(), optimizers, pipeline, watch)


def _test(module: DecoupledModule, data: pl.LightningDataModule) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return dict(trainer.test(module, datamodule=data, verbose=False)[0])


def _timed(reports: Sequence[StageReport], samples: int) -> Row:
    below = [report for report in reports if report.learned]
    return {
        "waited_lowest": reports[0].waited / reports[0].seconds,
        "waited_highest": reports[-1].waited / reports[-1].seconds,
        "waited": sum(r.waited for r in reports) / sum(r.seconds for r in reports),
        "samples_per_second": samples / max(report.seconds for report in reports),
        "lateness": sum(report.lateness for report in below) / max(len(below), 1),
        "forgotten": sum(report.forgotten for report in reports),
    }
