"""One member of a population, as Ray Tune runs it (extra ``tune``)."""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from ray import tune

from lightning_sobolev.experiments.run.resuming import LAST
from lightning_sobolev.experiments.tune.interval import train_interval
from lightning_sobolev.experiments.tune.knobs import Knobs, apply, read_knobs
from lightning_sobolev.experiments.tune.schedulers import MEMBER, RECENT, SCORE

_STATE = "state.json"
_KEPT = 10  # evaluations that the t-test looks at, as in the paper


class Member(tune.Trainable):
    """Trains one interval a step; its checkpoint is Lightning's and a few numbers beside it."""

    def setup(self, config: dict[str, Any], cfg: dict[str, Any] | None = None) -> None:
        """Begin, or begin again as another member: actors are reused.

        Args:
            config: Number of the member and positions of the knobs.
            cfg: The composed configuration, unresolved.
        """
        if cfg is not None:
            created = OmegaConf.create(cfg)
            assert isinstance(created, DictConfig)
            self.cfg = created
            self.knobs: Knobs = read_knobs(created, created.tuning.knobs)
            self.folder = Path(tempfile.mkdtemp(prefix="member_"))
        self.member = config[MEMBER]
        self.positions = {name: config[name] for name in self.knobs if name in config}
        self.parent, self.intervals = self.member, 0
        self.recent: list[float] = []
        self.diverged = False
        self.checkpoint.unlink(missing_ok=True)

    @property
    def checkpoint(self) -> Path:
        """The latest checkpoint of Lightning; a file of this actor alone."""
        return self.folder / LAST.name

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another member, or the same one with other settings."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one interval.

        Returns:
            The score, where and with what it was reached, and whose checkpoint it began from.
        """
        cfg = apply(self.cfg, self.knobs, self.positions) if self.positions else self.cfg
        end = round(cfg.steps * (self.intervals + 1) / cfg.tuning.intervals)
        score = math.nan
        if not self.diverged:
            start = self.checkpoint if self.intervals else None
            score = train_interval(cfg, self.folder, member=self.member, start=start, end=end)
        self.diverged = not math.isfinite(score)
        self.intervals += 1
        self.recent = [*self.recent, score][-_KEPT:]
        parent, self.parent = self.parent, self.member
        used = {f"knob_{n}": self.knobs[n].value(p) for n, p in self.positions.items()}
        return {SCORE: score, RECENT: self.recent, MEMBER: self.member, "parent": parent} | {
            "end": end, **used
        }  # fmt: skip

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Store what the next interval needs.

        Args:
            checkpoint_dir: An empty folder.
        """
        state = {"member": self.member, "intervals": self.intervals, "recent": self.recent}
        (Path(checkpoint_dir) / _STATE).write_text(json.dumps({**state, "diverged": self.diverged}))
        if self.checkpoint.is_file():
            shutil.copy(self.checkpoint, Path(checkpoint_dir) / LAST.name)

    def load_checkpoint(self, checkpoint: dict | str | None) -> None:
        """Go on from a stored interval, one's own or a donor's.

        Args:
            checkpoint: The folder.
        """
        folder = Path(str(checkpoint))
        state = json.loads((folder / _STATE).read_text())
        self.parent, self.intervals = state["member"], state["intervals"]
        self.recent, self.diverged = state["recent"], state["diverged"]
        if (folder / LAST.name).is_file():
            shutil.copy(folder / LAST.name, self.checkpoint)

    def cleanup(self) -> None:
        """Remove the actor's own files."""
        shutil.rmtree(self.folder, ignore_errors=True)
