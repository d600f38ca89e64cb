"""A closing step of a distillation: does the student answer as the teacher where it goes itself?"""

import math
from collections.abc import Mapping

import torch

from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.evaluate import visit
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.experiments.run.threads import one_thread
from lightning_sobolev.functional.discrepancies import kl
from lightning_sobolev.teachers import NetworkTeacher


class CompareVisited:
    """Compare student and teacher in states that the trained student visits with drawn actions.

    Adds ``test/visited_kl`` and ``test/visited_disagreement``, means over the games, with their
    standard errors: states of one game are no independent draws, games are.

    Args:
        settings: What is played.
        teacher: Who is asked.
        num_states: States to visit, the beginnings of ``settings.num_envs`` games; 0 adds nothing.
        seed: Seed of the games and of the drawn actions.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(
        self, settings: AtariSettings, teacher: NetworkTeacher, num_states: int, seed: int
    ) -> None:
        if num_states < 0:
            raise ValueError(f"num_states must be at least 0, got {num_states}")
        self.settings = settings
        self.teacher = teacher.network
        self.num_states = num_states
        self.seed = seed

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Play and compare; return means and standard errors."""
        if self.num_states == 0:
            return {}
        if not isinstance(run.module, DistillationModule):
            raise ValueError(
                f"CompareVisited needs a DistillationModule, got {type(run.module).__name__}"
            )
        with one_thread():
            answers = visit(
                run.module.net,
                self.teacher,
                self.settings,
                num_states=self.num_states,
                seed=self.seed,
                device=run.module.device,
                progress=run.show_progress,
            )
        student, teacher = (torch.from_numpy(one).double() for one in answers)
        divergence = kl(student.flatten(0, 1), teacher.flatten(0, 1)).view(student.shape[:2])
        differ = (student.argmax(-1) != teacher.argmax(-1)).double()
        return {
            **_over_games("test/visited_kl", divergence),
            **_over_games("test/visited_disagreement", differ),
        }


def _over_games(key: str, values: torch.Tensor) -> dict[str, float]:
    games = values.mean(0)
    error = float(games.std()) / math.sqrt(len(games)) if len(games) > 1 else math.nan
    return {key: float(games.mean()), f"{key}_standard_error": error}
