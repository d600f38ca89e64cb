"""Agents as teachers, and the last step of a distillation: student and teacher play the game."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_sobolev.atari.agents.cards import Agent, load_agent
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.distillation.returns import Games
from lightning_sobolev.experiments.distillation.verification import ReplayCheck
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.teachers import NetworkTeacher


class AgentTeacher(NetworkTeacher):
    """An agent of a game as a teacher.

    Args:
        network: Maps scaled stacks to logits.
        card: What is known of it; None for a bare network.
        verify: What it has to show before it is distilled; None asks for nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        card: Mapping[str, Any] | None = None,
        verify: ReplayCheck | None = None,
    ) -> None:
        super().__init__(network)
        self.card = card
        self.verify = verify


def agent_teacher(agent: Agent | nn.Module, verify: ReplayCheck | None = None) -> AgentTeacher:
    """Return an agent as a teacher.

    Args:
        agent: What :func:`~lightning_sobolev.atari.load_agent` takes, or a network from scaled
            stacks to logits.
        verify: What it has to show before it is distilled.
    """
    network, card = (agent, None) if isinstance(agent, nn.Module) else load_agent(agent)
    return AgentTeacher(network, card, verify)


def playing_teacher(module: DistillationModule) -> NetworkTeacher:
    """Return the teacher of a student, which has to be a network.

    Args:
        module: Holds the student.

    Returns:
        Its teacher.

    Raises:
        ValueError: If the teacher is no network that could play.
    """
    if not isinstance(module.teacher, NetworkTeacher):
        raise ValueError(
            "module must have a NetworkTeacher to play against, got "
            f"teacher={type(module.teacher).__name__}"
        )
    return module.teacher


class PlayGame:
    """Play whole episodes with the student and with the teacher, with drawn and likeliest actions.

    Adds ``test/student_return`` and ``test/teacher_return``, their standard errors, and the same
    with ``_greedy``. The teacher's returns are stored and looked up the next time.

    Args:
        settings: What is played.
        teacher: The policy to compare with.
        num_episodes: Episodes of each kind; 0 plays none and adds nothing.
        seed: Seed of the games and of the drawn actions.
        cache: Folder for the teacher's returns.
        greedy: Whether to play with likeliest actions too, which doubles the time.
    """

    def __init__(
        self,
        settings: AtariSettings,
        teacher: NetworkTeacher,
        num_episodes: int,
        seed: int,
        cache: str | Path,
        greedy: bool = True,
    ) -> None:
        if num_episodes < 0:
            raise ValueError(f"num_episodes must be at least 0, got {num_episodes}")
        self.teacher = teacher.network
        self.num_episodes = num_episodes
        self.cache = Path(cache)
        self.ways = tuple(
            Games(settings, num_episodes=num_episodes, greedy=way, seed=seed)
            for way in ((False, True) if greedy else (False,))
        )

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Play; return means and standard errors."""
        if self.num_episodes == 0:
            return {}
        if not isinstance(run.module, DistillationModule):
            raise ValueError(
                f"PlayGame needs a DistillationModule, got {type(run.module).__name__}"
            )
        return self.returns(run.module, progress=run.show_progress)

    def returns(self, module: DistillationModule, *, progress: bool = False) -> dict[str, float]:
        """Play with a student and with the teacher.

        Args:
            module: Holds the student.
            progress: Whether to show a progress bar.

        Returns:
            Means and standard errors by the names above.
        """
        numbers: dict[str, float] = {}
        for games in self.ways:
            ending = "_greedy" if games.greedy else ""
            returns = {
                "student": games.play(module.net, device=module.device, progress=progress),
                "teacher": games.play_once(
                    self.teacher, self.cache, device=module.device, progress=progress
                ),
            }
            for who, (mean, error) in returns.items():
                numbers[f"test/{who}_return{ending}"] = mean
                numbers[f"test/{who}_return{ending}_standard_error"] = error
        return numbers
