"""How long sections in processes of their own wait for each other, and what accuracy is kept."""

import logging
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev._checks import require
from lightning_sobolev._files import whole
from lightning_sobolev._progress import progress_bar
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.train import prepare_process
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import run_pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.stage import Pipeline

log = logging.getLogger(__name__)


def run_processes(cfg: DictConfig) -> Path:
    """Train in every way, with every delay, in turns; write a table after each, and a figure.

    Hydra must be initialized: the experiment is composed.
    """
    runs = list(product(range(cfg.seed, cfg.seed + cfg.rounds), cfg.delays, cfg.ways))
    require(bool(runs), "rounds, delays and ways", "at least one each", "no run")
    path, rows = Path(cfg.out) / "decoupling.csv", []
    with progress_bar("runs", len(runs), enabled=cfg.progress is not False) as advance:
        for seed, delay, way in runs:
            rows.append(_measure(cfg, seed, delay, way))
            advance(1)
            log.info("%s", ", ".join(f"{key} {value}" for key, value in rows[-1].items()))
            with whole(path) as writing:
                pd.DataFrame(rows).to_csv(writing, index=False, float_format="%.6g", na_rep="nan")
    report(path, x="delay")
    return path


def _measure(cfg: DictConfig, seed: int, delay: float, way: str) -> dict[str, Any]:
    kind = cfg.ways[way].kind
    same = {"kind": kind, "seed": seed, "run_dir": cfg.out, "data.num_train": cfg.num_train}
    same |= {"+experiment": "synthetic_gradients", "steps": cfg.steps, "cuts": cfg.cuts}
    given = [f"{key}={value}" for key, value in same.items()]
    experiment = compose("train", [*given, *cfg.overrides])
    prepare_process(experiment)
    data, module = instantiate(experiment.data), instantiate(experiment.module)
    data.prepare_data()
    data.setup()
    pipeline = Pipeline(
        optimizer=module.optimizer,
        model_optimizer=module.model_optimizer,
        model_updates=module.model_updates,
        scheduler=module.scheduler,
        lockstep=cfg.ways[way].lockstep,
        delay=delay,
        **{name: cfg[name] for name in ("steps", "capacity", "buffer", "timeout")},
    )
    reports = run_pipeline(module.stages, data.train_dataloader(), pipeline)
    tester = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (tested,) = tester.test(module, datamodule=data, verbose=False)
    did = pd.DataFrame(reports)
    about = {"way": way, "kind": kind, "data": data.images, "sections": len(reports)}
    about |= {"delay": delay, "steps": cfg.steps, "batch_size": data.batch_size, "seed": seed}
    return {
        **about,
        "test_accuracy": tested["test/accuracy"],
        "test_loss": tested["test/loss"],
        "gradient_cosine": tested.get("test/gradient_cosine", float("nan")),
        "waited_lowest": did.waited.iloc[0] / did.seconds.iloc[0],
        "waited_highest": did.waited.iloc[-1] / did.seconds.iloc[-1],
        "waited": did.waited.sum() / did.seconds.sum(),
        "samples_per_second": cfg.steps * data.batch_size / did.seconds.max(),
        # of stages with a model alone; 0 where there is none
        "lateness": (did.late / did.learned)[did.learned > 0].mean() if did.learned.any() else 0.0,
        "forgotten": did.forgotten.sum(),
    }
