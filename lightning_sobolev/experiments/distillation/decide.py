"""Where a student is compared with its teacher: at stored states, or at queries between them.

What the teacher does between two states decides it. Where its derivatives say what it answers at
recombined states, derivatives at stored states are worth most and queries harm; where they do not,
its values there are worth most. It is asked before anything is trained.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from lightning_sobolev._checks import require
from lightning_sobolev.doctor.moves import Explained, NothingToExplain, explained
from lightning_sobolev.doctor.rehearsal import own_random_numbers
from lightning_sobolev.experiments.distillation.teacher import player_of
from lightning_sobolev.experiments.run.train import build_trainer
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.points import Recombine, points_at
from lightning_sobolev.spec import SobolevSpec

log = logging.getLogger(__name__)

WAYS = ("values", "stored", "queries")
"""Of teaching: values alone; derivatives at stored states; queries, with derivatives there."""

_CLEAR = 0.3  # as much of the change as a derivative must explain to be worth matching
_SHARES = ((20, 0.75), (10, 0.5))
_BETTER = 0.03  # share of the score that a trial must bring before values alone are left


def share_of_queries(passes: float) -> float:
    """Return which share of a batch is asked, by how often training sees each state.

    The more often a state has been seen, the less it has left to tell.
    """
    return next((share for least, share in _SHARES if passes >= least), 0.0)


def way_of(found: Explained) -> str | None:
    """Return what the scores at recombined states ask for; None where they leave it open."""
    if found.first_order > _CLEAR:
        return "stored"
    return "queries" if found.first_order < 0.0 else None


@dataclass(frozen=True, slots=True)
class Decision:
    """Decides ``where`` and ``query_share`` of a distillation that leaves them open.

    Args:
        num_states: Training states at which the teacher is asked.
        foresight: Whether the scores there may decide; otherwise a trial always does.
        share_of_steps: Length of a trial, where the scores leave it open: each way trains for this
            share of the steps, and the best of them by the validation states is taken.
    """

    num_states: int = 1024
    foresight: bool = True
    share_of_steps: float = 0.2

    def __post_init__(self) -> None:
        require(self.num_states >= 2, "num_states", "at least 2", self.num_states)
        share = self.share_of_steps
        require(0.0 < share <= 1.0, "share_of_steps", "in (0, 1]", share)

    def check(self, cfg: DictConfig) -> None:
        """Refuse what cannot be decided by, and a module that cannot be built: nothing is recorded.

        Raises:
            ValueError: If ``where``, ``query_share`` or ``score`` cannot be decided by.
        """
        require(cfg.where in ("auto", *WAYS), "where", f"auto or one of {WAYS}", cfg.where)
        share, text = cfg.query_share, "null or in [0, 1]"
        fits = share is None or (isinstance(share, int | float) and 0.0 <= share <= 1.0)
        require(fits, "query_share", text, share)
        score = cfg.score
        fits = cfg.where != "auto" or (score is not None and score.mode in ("min", "max"))
        require(fits, "score", "{metric: ..., mode: min or max}", score)
        with own_random_numbers():
            instantiate(self.applied(cfg, {"where": "values", "query_share": 0.0}).module)

    def settings(
        self, cfg: DictConfig, datamodule: Any, earlier: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Return the settings that were open, and say in one line of the log why they are so.

        What was decided ``earlier`` is taken over where it is still open.
        """
        datamodule.setup("fit")
        passes = cfg.steps * cfg.data.batch_size / datamodule.num_train_states
        share = earlier.get("query_share") if cfg.query_share is None else cfg.query_share
        share = share_of_queries(passes) if share is None else share
        way, why = cfg.where, "as it was asked for"
        if cfg.sobolev.callback is None and way != "queries":
            way, why = "values", "no derivatives are matched"
        elif way == "auto" and earlier.get("where") in WAYS:
            way, why = earlier["where"], "as it was decided before"
        elif way == "auto":
            way, why = self._found(cfg, datamodule, share)
        if way == "queries":
            asked = f"{share:.0%} of each batch are queries" if share else "no queries"
            why += f"; {asked}: each state is seen {passes:.3g} times"
        log.info("where: %s (%s)", way, why)
        return {"where": way, "query_share": share}

    def applied(self, cfg: DictConfig, settings: dict[str, Any]) -> DictConfig:
        """Return a copy of a configuration in which the decision is made."""
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.where, cfg.query_share = settings["where"], settings["query_share"]
            if cfg.where == "values":
                cfg.sobolev.callback = None
            if cfg.query_share == 0.0:
                cfg.module.queries = None
        return cfg

    def _found(self, cfg: DictConfig, datamodule: Any, share: float) -> tuple[str, str]:
        try:
            found = self._asked(cfg, datamodule) if self.foresight else None
        except NothingToExplain:
            found = None
        way = None if found is None else way_of(found)
        if found is None or way is None:
            return self._tried(cfg, share)
        return way, (
            f"the teacher's derivatives explain {found.first_order:.0%} +- {found.error:.0%} of "
            f"its change to states made of two, those at both ends {found.both_ends:.0%}"
        )

    def _asked(self, cfg: DictConfig, datamodule: Any) -> Explained:
        x = datamodule.states(self.num_states)
        moved = points_at(Recombine(share=1.0), x, generator_for(cfg.seed), lambda: 0)
        x, moved = (one.float() / 255 if one.dtype == torch.uint8 else one for one in (x, moved))
        match = instantiate(cfg.match) if isinstance(cfg.match, DictConfig) else cfg.match
        policy = player_of(instantiate(cfg.teacher))
        return explained(policy, x, moved, on=SobolevSpec(on=match).output_map)

    def _tried(self, cfg: DictConfig, share: float) -> tuple[str, str]:
        steps = math.ceil(self.share_of_steps * cfg.steps)
        # without a share the third differs from the second in its weights alone
        open_ways = WAYS if share else WAYS[:2]
        ways = {way: self.applied(cfg, {"where": way, "query_share": share}) for way in open_ways}
        scores = {way: _trial(tried, steps) for way, tried in ways.items()}
        said = ", ".join(f"{way} {score:.4g}" for way, score in scores.items())
        why = f"{cfg.score.metric} after a trial of {steps} steps: {said}"
        return best_of(scores, cfg.score.mode), why


def best_of(scores: Mapping[str, float], mode: str) -> str:
    """Return the way with the best score; one that is not finite loses to all others."""
    sign = {"min": 1.0, "max": -1.0}[mode]
    losses = {way: sign * score for way, score in scores.items() if math.isfinite(score)}
    if "values" in losses:
        losses["values"] -= _BETTER * abs(losses["values"])
    return min(losses, key=lambda way: losses[way], default="values")


def _trial(cfg: DictConfig, steps: int) -> float:
    """Train for a few steps, as if they were all, and return the score on the validation states.

    In this process alone, whatever the run does; NaN where training diverges.
    """
    with TemporaryDirectory() as folder:
        with open_dict(cfg):
            cfg.steps, cfg.run_dir, cfg.progress = steps, folder, False
            cfg.logger, cfg.callbacks, cfg.sobolev.doctor = {}, {}, False
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        datamodule, module = instantiate(cfg.data), instantiate(cfg.module)
        trainer = build_trainer(cfg, strategy="auto", devices=1)
        try:
            trainer.fit(module, datamodule=datamodule)
        except FloatingPointError:  # a term or a weight that is not finite
            return math.nan
        found = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    name, known = cfg.score.metric, "one that validation logs: " + ", ".join(found)
    require(name in found, "score.metric", known, name)
    return float(found[name])
