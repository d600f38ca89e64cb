"""One member of a population, as Ray Tune runs it: an interval of training a step."""

import json
import math
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from ray import tune

from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.run.train import build_trainer, prepare_process
from lightning_sobolev.experiments.tune.schedulers import MEMBER, RECENT, SCORE
from lightning_sobolev.experiments.tune.search_space import apply, read_search_space
from lightning_sobolev.loading import OrderedBatches, ResumableLoader

WORKING = "working"  # the folder of the actors' own files; nothing in it outlives a search
SETTING = "setting_"
_STATE = "state.json"
_KEPT = 10  # evaluations that the t-test looks at, as in the paper


class Member(tune.Trainable):
    """Trains one interval a step; its checkpoint is Lightning's and a few numbers beside it."""

    def setup(self, config: dict[str, Any], cfg: dict[str, Any] | None = None) -> None:
        """Begin, or begin again as another member: actors are reused.

        Args:
            config: Number of the member and positions of its settings.
            cfg: The composed configuration, unresolved.
        """
        if cfg is not None:
            created = OmegaConf.create(cfg)
            assert isinstance(created, DictConfig)
            self.cfg, self.space = created, read_search_space(created)
            working = Path(created.run_dir) / WORKING
            working.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(dir=working))
        self.member = config[MEMBER]
        self.positions = {name: config[name] for name in self.space if name in config}
        self.parent, self.intervals, self.diverged = self.member, 0, False
        self.recent: list[float] = []
        self.last.unlink(missing_ok=True)

    @property
    def last(self) -> Path:
        """The latest checkpoint of Lightning; a file of this actor alone."""
        return self.folder / LAST

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another member, or the same one with other settings."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one interval.

        Returns:
            The score, where and with what it was reached, and whose checkpoint it began from.
        """
        cfg = apply(self.cfg, self.space, self.positions)
        end = round(cfg.steps * (self.intervals + 1) / cfg.tuning.intervals)
        score = math.nan
        if not self.diverged:
            score = train_interval(cfg, self.folder, self.member, end, resume=self.intervals > 0)
        self.diverged = not math.isfinite(score)
        self.intervals += 1
        self.recent = [*self.recent, score][-_KEPT:]
        parent, self.parent = self.parent, self.member
        used = {f"{SETTING}{n}": self.space[n].value(p) for n, p in self.positions.items()}
        result = {SCORE: score, RECENT: self.recent, MEMBER: self.member, "parent": parent}
        return {**result, "end": end, **used}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Store what the next interval needs in an empty folder."""
        state = {"member": self.member, "intervals": self.intervals, "recent": self.recent}
        (Path(checkpoint_dir) / _STATE).write_text(json.dumps({**state, "diverged": self.diverged}))
        if self.last.is_file():
            shutil.copy(self.last, Path(checkpoint_dir) / LAST.name)

    def load_checkpoint(self, checkpoint: dict | str | None) -> None:
        """Go on from the folder of a stored interval, one's own or a donor's."""
        folder = Path(str(checkpoint))
        state = json.loads((folder / _STATE).read_text())
        self.parent, self.intervals = state["member"], state["intervals"]
        self.recent, self.diverged = state["recent"], state["diverged"]
        if (folder / LAST.name).is_file():
            self.last.parent.mkdir(exist_ok=True)
            shutil.copy(folder / LAST.name, self.last)

    def cleanup(self) -> None:
        """Remove the actor's own files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def train_interval(cfg: DictConfig, folder: Path, member: int, end: int, *, resume: bool) -> float:
    """Go on until a step, and evaluate there.

    What the checkpoint brings is the donor's: weights, moments, place on every schedule, number of
    draws, running scales. What ``cfg`` says is the member's own: weights of the terms, rows,
    learning rate.

    Args:
        cfg: The composed configuration, with the member's settings.
        folder: Where ``checkpoints/last.ckpt`` is left.
        member: Number of the member; with ``cfg.seed`` it decides the first weights. All members
            see the same data.
        end: The step to stop behind.
        resume: Whether to go on from the checkpoint that is there.

    Returns:
        The score on validation data; NaN if the training diverged, and then the checkpoint is of
        no use.
    """
    cfg = _for_an_interval(cfg, folder, resume=resume)
    prepare_process(cfg)
    datamodule = instantiate(cfg.data)
    seed = Random(f"{cfg.seed} {member} {end}").randrange(2**31)
    pl.seed_everything(seed, workers=True, verbose=False)
    module = instantiate(cfg.module)
    trainer = build_trainer(
        cfg,
        [OwnLearningRate(), _Until(end)],
        val_check_interval=cfg.steps + 1,  # the score is asked for afterwards
    )
    ckpt = folder / LAST if resume else None
    try:
        with suppress(_IntervalOver):
            trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt, weights_only=True)
    except FloatingPointError:  # a term or a weight that is not finite: this member has diverged
        return math.nan
    return _score(cfg, trainer, module, datamodule)


def _for_an_interval(cfg: DictConfig, folder: Path, *, resume: bool) -> DictConfig:
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir, cfg.logger = str(folder), {}
        cfg.progress = cfg.pictures = False
        if resume:  # they have seen this student and its teacher
            cfg.sobolev.doctor = False
            for name in cfg.tuning.once:
                cfg.callbacks.pop(name, None)
    return cfg


def _score(cfg: DictConfig, trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> float:
    """Evaluate on data that choices may be made by; the test data stay unseen."""
    metric = cfg.score.metric
    if metric.startswith("val/"):
        found = trainer.validate(module, datamodule=data, weights_only=True, verbose=False)
    else:
        points = data.validation_points()  # they take the place of the test points
        loader = ResumableLoader(points, OrderedBatches(len(points), 1024))
        bare = cfg.copy()
        bare.callbacks = {}  # what follows a test follows that of the best
        found = build_trainer(bare).test(
            module, dataloaders=loader, weights_only=True, verbose=False
        )
    if metric not in found[0]:
        raise ValueError(f"score.metric must be one of {list(found[0])}, got {metric!r}")
    return found[0][metric]


class _IntervalOver(Exception):
    """Ends a fit where it can go on: with ``max_steps`` the epoch would count as over, too."""


class _Until(Callback):
    def __init__(self, end: int) -> None:
        self.end = end

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.end:
            raise _IntervalOver


class OwnLearningRate(Callback):
    """Keeps the configured learning rate although a checkpoint brings the donor's.

    The moments of the optimizer and the place on the schedule stay the donor's; every group's rate
    is scaled by new over old first rate, so a schedule that is a multiple of its first rate goes
    on as if it had begun with the new one.
    """

    def __init__(self) -> None:
        self._configured: list[list[float]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the rates; the optimizers are built and nothing is restored yet."""
        del pl_module
        self._configured = [
            [_first_rate(group) for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back, in the optimizers and in what their schedules remember."""
        del pl_module
        for optimizer, rates in zip(trainer.optimizers, self._configured, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] *= rate / _first_rate(group)
                if "initial_lr" in group:
                    group["initial_lr"] = rate
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            groups = schedule.optimizer.param_groups
            schedule.base_lrs = [_first_rate(group) for group in groups]
            schedule._last_lr = [group["lr"] for group in groups]


def _first_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
