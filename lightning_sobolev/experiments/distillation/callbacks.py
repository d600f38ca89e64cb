"""What follows the test of a student: it plays the game, and is compared where it goes itself."""

import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_sobolev.atari import AtariSettings, on_policy_answers
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.distillation.teacher import Games
from lightning_sobolev.functional.discrepancies import kl


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

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(
        self,
        settings: AtariSettings,
        cache: str | Path,
        *,
        num_episodes: int = 30,
        greedy: bool = True,
        seed: int = 1000,
    ) -> None:
        if num_episodes < 0:
            raise ValueError(f"num_episodes must be at least 0, got {num_episodes}")
        self.cache = Path(cache)
        self.games = {
            ending: Games(settings, num_episodes, is_greedy, seed)
            for ending, is_greedy in (("", False), ("_greedy", True))
            if num_episodes > 0 and (greedy or not is_greedy)
        }

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play and log means and standard errors."""
        if self.games:
            student = DistillationModule.of(pl_module, self)
            pl_module.log_dict(self.returns(student, progress=shows_no_bar(trainer)))

    def returns(self, module: DistillationModule, *, progress: bool = True) -> dict[str, Tensor]:
        """Play with a student and its teacher; return means and standard errors by their keys."""
        numbers: dict[str, Tensor] = {}
        players = {"student": (module.net, None), "teacher": (module.playing_teacher, self.cache)}
        for ending, games in self.games.items():
            for who, (network, cache) in players.items():
                key = f"test/{who}_return{ending}"
                numbers |= games.returns(
                    network, key, cache=cache, device=module.device, progress=progress
                )
        return numbers


class OnPolicyKL(pl.Callback):
    """Compare student and teacher in states that the trained student goes to by sampled actions.

    Logs ``test/visited_kl`` and ``test/visited_disagreement``, means over the games, with their
    standard errors: states of one game are no independent draws, games are.

    Args:
        settings: What is played.
        num_states: States to compare in, the beginnings of ``settings.num_envs`` games; 0 logs
            nothing.
        seed: Seed of the games and of the sampled actions.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(self, settings: AtariSettings, *, num_states: int, seed: int = 2000) -> None:
        if num_states < 0:
            raise ValueError(f"num_states must be at least 0, got {num_states}")
        self.settings = settings
        self.num_states = num_states
        self.seed = seed

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play, compare, and log means and standard errors."""
        if self.num_states == 0:
            return
        module = DistillationModule.of(pl_module, self)
        answers = on_policy_answers(
            module.net,
            module.playing_teacher,
            self.settings,
            num_states=self.num_states,
            seed=self.seed,
            device=module.device,
            progress=shows_no_bar(trainer),
        )
        student, teacher = (torch.from_numpy(one).double() for one in answers)
        divergence = kl(student.flatten(0, 1), teacher.flatten(0, 1)).view(student.shape[:2])
        differ = (student.argmax(-1) != teacher.argmax(-1)).double()
        module.log_dict(_over_games("test/visited_kl", divergence))
        module.log_dict(_over_games("test/visited_disagreement", differ))


def shows_no_bar(trainer: pl.Trainer) -> bool:
    """Whether the terminal is free for another progress bar than the trainer's."""
    return trainer.progress_bar_callback is None


def _over_games(key: str, values: Tensor) -> dict[str, Tensor]:
    games = values.mean(0)
    nothing = games.new_tensor(math.nan)
    error = games.std() / math.sqrt(len(games)) if len(games) > 1 else nothing
    return {key: games.mean(), f"{key}_standard_error": error}
