"""What follows the test of a student: it plays the game, and is compared where it goes itself."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_sobolev.experiments.distillation.module import DistillationModule, distillation
from lightning_sobolev.experiments.distillation.played import Settings, played
from lightning_sobolev.experiments.distillation.teacher import returns_of


class PlayGame(pl.Callback):
    """Play whole episodes with the student and with its teacher, sampled and greedy actions.

    Logs ``test/student_return`` and ``test/teacher_return``, their standard errors, and the same
    with ``_greedy``. The teacher's returns are stored and looked up the next time.

    Args:
        settings: What is played.
        cache: Folder for the teacher's returns.
        num_episodes: Episodes of each kind; 0 plays none and logs nothing.
        greedy: Whether to play with greedy actions too, which doubles the time.
        seed: Seed of the games and of the sampled actions.
    """

    def __init__(
        self,
        settings: Settings,
        cache: str | Path,
        *,
        num_episodes: int = 30,
        greedy: bool = True,
        seed: int = 1000,
    ) -> None:
        self.settings, self.cache = settings, Path(cache)
        self.num_episodes, self.seed = num_episodes, seed
        self.ways = {"": False, "_greedy": True} if greedy else {"": False}

    def on_test_epoch_end(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play and log means and standard errors."""
        if self.num_episodes > 0:
            pl_module.log_dict(self.returns(distillation(pl_module)))

    def returns(self, module: DistillationModule, *, progress: bool = False) -> dict[str, Tensor]:
        """Play with a student and its teacher; return means and standard errors by their keys."""
        numbers: dict[str, Tensor] = {}
        games: dict[str, Any] = {"num_episodes": self.num_episodes, "seed": self.seed}
        games |= {"device": module.device, "progress": progress}
        for way, greedy in self.ways.items():
            for who, network in module.players.items():
                cache, key = self.cache if who == "teacher" else None, f"test/{who}_return{way}"
                played = {"cache": cache, "greedy": greedy, **games}
                numbers |= returns_of(network, key, self.settings, **played)
        return numbers


class OnPolicyKL(pl.Callback):
    """Compare student and teacher in states that the trained student goes to by sampled actions.

    Logs ``test/visited_kl`` and ``test/visited_disagreement`` (of continuous actions
    ``test/visited_distance``, of the means in the teacher's deviations), means over the games, with
    their standard errors: states of one game are no independent draws, games are.

    Args:
        settings: What is played.
        num_states: States to compare in, the beginnings of ``settings.num_envs`` games; 0 logs
            nothing.
        seed: Seed of the games and of the sampled actions.
    """

    def __init__(self, settings: Settings, *, num_states: int, seed: int = 2000) -> None:
        self.settings = settings
        self.games = {"num_states": num_states, "seed": seed}

    def on_test_epoch_end(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play, compare, and log means and standard errors."""
        if self.games["num_states"] == 0:
            return
        teacher, student = distillation(pl_module).players.values()
        options: dict[str, Any] = {"device": pl_module.device, "progress": False, **self.games}
        how = played(self.settings)
        answers = how.compare(student, teacher, self.settings, **options)
        ours, theirs = (torch.from_numpy(one).double() for one in answers)
        rows, shape = (ours.flatten(0, 1), theirs.flatten(0, 1)), ours.shape[:2]
        measured = {
            "kl": how.head.divergence(*rows),
            how.head.difference: how.head.disagreement(*rows),
        }
        for name, values in measured.items():
            games, key = values.view(shape).mean(0), f"test/visited_{name}"
            error = games.std() / math.sqrt(len(games)) if len(games) > 1 else math.nan
            pl_module.log_dict({key: games.mean(), f"{key}_standard_error": error})
