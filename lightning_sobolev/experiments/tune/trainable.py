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
from omegaconf import DictConfig, open_dict
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
        """Begin, or begin again as another member (without ``cfg``): actors are reused."""
        if cfg is not None:
            self.cfg = DictConfig(cfg)
            self.space = read_search_space(self.cfg)
            working = Path(self.cfg.run_dir) / WORKING
            working.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(dir=working))
            self.last = self.folder / LAST  # Lightning's latest checkpoint, of this actor alone
        self.member = self.parent = config[MEMBER]
        self.positions = {name: config[name] for name in self.space if name in config}
        self.scores: list[float] = []
        self.last.unlink(missing_ok=True)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another member, or the same one with other settings."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one interval; report the score, and with what and from whose weights it came."""
        cfg, done = apply(self.cfg, self.space, self.positions), len(self.scores)
        end = round(cfg.steps * (done + 1) / cfg.tuning.intervals)
        score = math.nan
        if not done or math.isfinite(self.scores[-1]):  # else it has diverged
            score = train_interval(cfg, self.folder, self.member, end, resume=done > 0)
        self.scores.append(score)
        parent, self.parent = self.parent, self.member
        used = {f"{SETTING}{n}": self.space[n].value(p) for n, p in self.positions.items()}
        found = {SCORE: score, RECENT: self.scores[-_KEPT:], MEMBER: self.member}
        return {**found, "parent": parent, "end": end, **used}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Store what the next interval needs in an empty folder."""
        state = {MEMBER: self.member, "scores": self.scores}
        (Path(checkpoint_dir) / _STATE).write_text(json.dumps(state))
        if self.last.is_file():
            shutil.copy(self.last, checkpoint_dir)

    def load_checkpoint(self, checkpoint: dict | str | None) -> None:
        """Go on from the folder of a stored interval, one's own or a donor's."""
        folder = Path(str(checkpoint))
        state = json.loads((folder / _STATE).read_text())
        self.parent, self.scores = state[MEMBER], state["scores"]
        if (folder / LAST.name).is_file():
            self.last.parent.mkdir(exist_ok=True)
            shutil.copy(folder / LAST.name, self.last)

    def cleanup(self) -> None:
        """Remove the actor's own files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def train_interval(cfg: DictConfig, folder: Path, member: int, end: int, *, resume: bool) -> float:
    """Go on until a step, and return the score on validation data there, NaN if it diverged.

    What the checkpoint brings is the donor's: weights, moments, place on every schedule, number of
    draws, running scales. What ``cfg`` says is the member's own, as are the first weights.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir, cfg.logger = str(folder), {}
        cfg.progress = cfg.pictures = False
        if resume:  # they have seen this student and its teacher
            cfg.sobolev.doctor = False
            for name in cfg.tuning.once:
                cfg.callbacks.pop(name, None)
    prepare_process(cfg)
    datamodule = instantiate(cfg.data)
    seed = Random(f"{cfg.seed} {member} {end}").randrange(2**31)
    pl.seed_everything(seed, workers=True, verbose=False)
    module = instantiate(cfg.module)
    # the score is asked for afterwards
    trainer = build_trainer(cfg, [Interval(end)], val_check_interval=cfg.steps + 1)
    ckpt = folder / LAST if resume else None
    try:
        with suppress(_IntervalOver):
            trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt, weights_only=True)
    except FloatingPointError:  # a term or a weight that is not finite: this member has diverged
        return math.nan
    return _score(cfg, trainer, module, datamodule)


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


class Interval(Callback):
    """Ends behind a step; keeps the configured learning rate although a copy brings the donor's.

    Every group's rate is scaled by new over old first rate, so a schedule that is a multiple of its
    first rate goes on as if it had begun with the new one.
    """

    def __init__(self, end: int) -> None:
        self.end = end

    def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the rates; the optimizers are built and nothing is restored yet."""
        self._rates = [[_first_rate(g) for g in opt.param_groups] for opt in trainer.optimizers]

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Put them back, in the optimizers and in what their schedules remember."""
        for optimizer, rates in zip(trainer.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] *= rate / _first_rate(group)
                if "initial_lr" in group:
                    group["initial_lr"] = rate
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            groups = schedule.optimizer.param_groups
            schedule.base_lrs = [_first_rate(group) for group in groups]
            schedule._last_lr = [group["lr"] for group in groups]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Leave the fit when the interval is over."""
        if trainer.global_step >= self.end:
            raise _IntervalOver


def _first_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
