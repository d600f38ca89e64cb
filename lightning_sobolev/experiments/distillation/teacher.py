"""An agent as a teacher, and the proof that it can play before anybody learns from it."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from lightning_sobolev._files import read_json, write_json
from lightning_sobolev.atari import AtariSettings, fingerprint, load_agent, play
from lightning_sobolev.atari.agents.cards import Agent, Card
from lightning_sobolev.teachers import NetworkTeacher

log = logging.getLogger(__name__)

CARD = "teacher.json"


def agent_teacher(agent: Agent | nn.Module) -> NetworkTeacher:
    """Return what ``load_agent`` takes, or a network from scaled stacks to logits, as a teacher."""
    return NetworkTeacher(_loaded(agent)[0])


def _loaded(agent: Agent | nn.Module) -> tuple[nn.Module, Card | None]:
    return (agent, None) if isinstance(agent, nn.Module) else load_agent(agent)


@dataclass(frozen=True, slots=True)
class Games:
    """Games that are the same for everybody who plays them."""

    settings: AtariSettings
    num_episodes: int
    greedy: bool
    seed: int

    def returns(
        self,
        network: nn.Module,
        key: str,
        *,
        cache: Path | None = None,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """Play all episodes, or look up what the same weights returned in the same games.

        Args:
            network: Maps scaled stacks to logits.
            key: What the mean return is called.
            cache: Folder of known returns; None plays in any case. Processes that want the same
                returns wait for the first one.
            device: Where the network works.
            progress: Whether to show a progress bar.

        Returns:
            Mean return and its standard error.
        """

        def found() -> dict[str, Any]:
            games = {name: value for name, value in asdict(self).items() if name != "settings"}
            played = play(network, self.settings, device=device, progress=progress, **games)
            return {"mean": played.mean, "standard_error": played.standard_error}

        asked = {"teacher_sha256": fingerprint(network), **asdict(self)}
        returns = found() if cache is None else _looked_up(cache, asked, found)
        keys = {"mean": key, "standard_error": f"{key}_standard_error"}
        # logged as float32, which plain numbers become, they would lose their last digits
        return {keys[part]: torch.tensor(returns[part], dtype=torch.float64) for part in keys}


def _looked_up(
    cache: Path, asked: dict[str, Any], find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = cache / f"{digest[:16]}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        known = read_json(path)
        if known is None or known.get("asked") != asked:
            known = {"asked": asked, **find()}
            write_json(path, known)
    return known


class ReplayCheck(pl.Callback):
    """Replay the teacher in the game and refuse one that cannot play it.

    The policies that people share differ in how their frames were made, and one that is shown
    others can play at random without any message. The data module calls the check before anything
    is recorded; as a callback it checks before training, leaves the teacher's card as
    ``teacher.json`` in the folder of the run, and logs ``verify/teacher_return`` and its standard
    error. The teacher plays once; the return is stored and looked up the next time.

    Args:
        agent: Who teaches: what :func:`~lightning_sobolev.atari.load_agent` takes, or a network.
        settings: What is played.
        cache: Folder for the teacher's returns.
        min_return: Least mean return; None only shows what it is.
        num_episodes: Whole episodes to play; 0 plays none.
        greedy: Whether it plays greedy actions instead of sampled ones.
        seed: Seed of the games and of the sampled actions.

    Raises:
        ValueError: If there is a return to reach and no episode to reach it in.
    """

    def __init__(
        self,
        agent: Agent | nn.Module,
        settings: AtariSettings,
        cache: str | Path,
        *,
        min_return: float | None = None,
        num_episodes: int = 10,
        greedy: bool = False,
        seed: int = 1000,
    ) -> None:
        least = 0 if min_return is None else 1
        if num_episodes < least:
            raise ValueError(
                f"num_episodes must be at least {least} with min_return={min_return}, "
                f"got {num_episodes}"
            )
        self.agent = agent
        self.min_return = min_return
        self.cache = Path(cache)
        self.games = Games(settings, num_episodes, greedy, seed)

    def __call__(self, teacher: nn.Module) -> None:
        """Refuse who is about to make the data, if it is another network or returns too little."""
        network, _ = _loaded(self.agent)
        if fingerprint(teacher) != fingerprint(network):
            raise ValueError(
                "the teacher of the data and the teacher of the derivatives must be one network, "
                "got different weights: a module that a configuration names is built more than "
                "once and must load its weights, not draw them"
            )
        self._replay(network)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the teacher before training and leave its card."""
        del pl_module
        if stage == "fit":
            network, card = _loaded(self.agent)
            _save_card(Path(trainer.default_root_dir), card, self._replay(network))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what the teacher returned."""
        del trainer
        pl_module.log_dict(self._returns(_loaded(self.agent)[0]))

    def _returns(self, network: nn.Module) -> dict[str, Tensor]:
        if self.games.num_episodes == 0:
            return {}
        return self.games.returns(network, "verify/teacher_return", cache=self.cache)

    def _replay(self, network: nn.Module) -> dict[str, Tensor]:
        games, numbers = self.games, self._returns(network)
        if not numbers:
            return {}
        mean, error = map(float, numbers.values())
        found = f"{mean:.4g} +- {error:.2g} in {games.num_episodes} episodes"
        log.info("the teacher's return in %s: %s", games.settings.game, found)
        if self.min_return is not None and mean < self.min_return:
            raise ValueError(
                f"the teacher must return at least {self.min_return:g} in {games.settings.game} "
                f"(verify.min_return), got {found}: either it is no better, or it was trained on "
                "other frames or actions than env.settings describes (frameskip, maxpool, "
                "sticky, full_action_space)"
            )
        return numbers


@rank_zero_only
def _save_card(folder: Path, card: Mapping[str, Any] | None, numbers: Mapping[str, Tensor]) -> None:
    if card is None:
        return
    # JSON has no NaN, the standard error of a single episode
    replay = {key: float(x) if math.isfinite(x) else None for key, x in numbers.items()}
    write_json(folder / CARD, {**card, "replay": replay} if replay else {**card})
