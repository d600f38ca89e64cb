"""An agent as a teacher, and the proof that it can play before anybody learns from it."""

import hashlib
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_sobolev._files import locked, read_json, write_json
from lightning_sobolev.atari import fingerprint, load_agent
from lightning_sobolev.atari.agents.cards import Agent, Card
from lightning_sobolev.experiments.distillation.played import Settings, played
from lightning_sobolev.policies import EnvSettings, Head, PolicyTeacher, load_policy
from lightning_sobolev.policies.agents import Policy
from lightning_sobolev.teachers import NetworkTeacher

log = logging.getLogger(__name__)

CARD = "teacher.json"


def agent_teacher(agent: Agent | nn.Module) -> NetworkTeacher:
    """Return what ``load_agent`` takes, or a network from scaled stacks to logits, as a teacher."""
    return NetworkTeacher(agent if isinstance(agent, nn.Module) else load_agent(agent)[0])


def policy_teacher(agent: Policy, settings: EnvSettings) -> NetworkTeacher:
    """Return what ``load_policy`` takes, or a network over observations, as a teacher."""
    return PolicyTeacher(load_policy(agent, settings)[0])


def player_of(teacher: NetworkTeacher) -> nn.Module:
    """Return the network that plays, which takes whole observations."""
    return teacher.player if isinstance(teacher, PolicyTeacher) else teacher.network


def policy_head(settings: EnvSettings, agent: Policy) -> Head:
    """Return the head of an environment, in the units of its teacher."""
    return Head.for_env(settings, load_policy(agent, settings)[0])


def _loaded(agent: Any, settings: Settings) -> tuple[nn.Module, Card | None]:
    return (agent, None) if isinstance(agent, nn.Module) else played(settings).load(agent)


def returns_of(
    network: nn.Module,
    key: str,
    settings: Settings,
    *,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    **games: Any,
) -> dict[str, Tensor]:
    """Return the mean return of episodes, called ``key``, and its standard error; look it up."""

    def found() -> dict[str, Any]:
        how = {"device": device, "progress": progress, **games}
        returns = played(settings).play(network, settings, **how)
        return {"mean": returns.mean, "standard_error": returns.standard_error}

    if cache is None:
        returns = found()
    else:
        asked = {"teacher_sha256": fingerprint(network), "settings": asdict(settings), **games}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        path = cache / f"{digest[:16]}.json"
        with locked(cache / ".lock"):
            returns = read_json(path) or {}
            if returns.get("asked") != asked:
                returns = {"asked": asked, **found()}
                write_json(path, returns)
    numbers = {key: returns["mean"], f"{key}_standard_error": returns["standard_error"]}
    # logged as float32, which plain numbers become, they would lose their last digits
    return {name: torch.tensor(one, dtype=torch.float64) for name, one in numbers.items()}


class ReplayCheck(pl.Callback):
    """Replay the teacher in the game and refuse one that cannot play it.

    The policies that people share differ in how their frames were made, and one that is shown
    others can play at random without any message. The data module calls the check before anything
    is recorded; as a callback it checks before training, leaves the teacher's card as
    ``teacher.json`` in the folder of the run, and logs ``verify/teacher_return`` and its standard
    error. The teacher plays once; the return is stored and looked up the next time.

    Args:
        agent: Who teaches: what :func:`~lightning_sobolev.atari.load_agent` or, for a vector
            environment, :func:`~lightning_sobolev.policies.load_policy` takes, or a network.
        settings: What is played.
        cache: Folder for the teacher's returns.
        min_return: Least mean return; None only shows what it is.
        num_episodes: Whole episodes to play; 0 plays none.
        greedy: Whether it plays greedy actions instead of sampled ones.
        seed: Seed of the games and of the sampled actions.
    """

    def __init__(
        self,
        agent: Agent | nn.Module,
        settings: Settings,
        cache: str | Path,
        *,
        min_return: float | None = None,
        num_episodes: int = 10,
        greedy: bool = False,
        seed: int = 1000,
    ) -> None:
        if min_return is not None and num_episodes < 1:
            text = f"num_episodes must be at least 1 with min_return={min_return}"
            raise ValueError(f"{text}, got {num_episodes}")
        self.agent, self.min_return = agent, min_return
        self.settings, self.cache = settings, Path(cache)
        self.games: dict[str, Any] = {"num_episodes": num_episodes, "greedy": greedy, "seed": seed}

    def __call__(self, teacher: nn.Module) -> None:
        """Refuse who is about to make the data, if it is another network or returns too little."""
        network, _ = _loaded(self.agent, self.settings)
        if fingerprint(teacher) != fingerprint(network):
            raise ValueError(
                "the teacher of the data and the teacher of the derivatives must be one network, "
                "got different weights: a module that a configuration names is built more than "
                "once and must load its weights, not draw them"
            )
        self._replayed(network)

    def setup(self, trainer: pl.Trainer, _: pl.LightningModule, stage: str) -> None:
        """Check the teacher before training and leave its card."""
        if stage != "fit":
            return
        network, card = _loaded(self.agent, self.settings)
        # JSON has no NaN, the standard error of a single episode
        numbers = self._replayed(network).items()
        replay = {key: float(x) if math.isfinite(x) else None for key, x in numbers}
        if card is not None and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / CARD
            write_json(path, {**card, "replay": replay} if replay else card)

    def on_test_epoch_end(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what the teacher returned."""
        pl_module.log_dict(self._replayed(_loaded(self.agent, self.settings)[0]))

    def _replayed(self, network: nn.Module) -> dict[str, Tensor]:
        if self.games["num_episodes"] == 0:
            return {}
        key, how = "verify/teacher_return", played(self.settings)
        numbers = returns_of(network, key, self.settings, cache=self.cache, **self.games)
        mean, error = map(float, numbers.values())
        found = f"{mean:.4g} +- {error:.2g} in {self.games['num_episodes']} episodes"
        log.info("the teacher's return in %s: %s", how.name, found)
        if self.min_return is not None and mean < self.min_return:
            raise ValueError(
                f"the teacher must return at least {self.min_return:g} in {how.name} "
                f"(verify.min_return), got {found}: either it is no better, or it was trained on "
                f"{how.causes}"
            )
        return numbers
