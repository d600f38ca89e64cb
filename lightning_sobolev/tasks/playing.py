"""The last step of a distillation: student and teacher play the game."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.evaluation import play
from lightning_sobolev.atari.recording import fingerprint
from lightning_sobolev.atari.storage import read_json, write_json
from lightning_sobolev.atari.zoo import load_agent
from lightning_sobolev.tasks.distillation import DistillationModule
from lightning_sobolev.tasks.finished import FinishedRun
from lightning_sobolev.tasks.threads import one_thread
from lightning_sobolev.teachers import NetworkTeacher


def agent_teacher(agent: str | Path) -> NetworkTeacher:
    """Return a stored agent as a teacher.

    Args:
        agent: Name of an agent of the package, or path of a ``.safetensors`` file.
    """
    return NetworkTeacher(load_agent(agent)[0])


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
        self.settings = settings
        self.teacher = teacher.network
        self.num_episodes = num_episodes
        self.seed = seed
        self.cache = Path(cache)
        self.greedy = greedy

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Play; return means and standard errors."""
        if self.num_episodes == 0:
            return {}
        if not isinstance(run.module, DistillationModule):
            raise ValueError(
                f"PlayGame needs a DistillationModule, got {type(run.module).__name__}"
            )
        numbers: dict[str, float] = {}
        for greedy in (False, True) if self.greedy else (False,):
            ending = "_greedy" if greedy else ""
            returns = {
                "student": self._play(run.module.net, run, greedy=greedy),
                "teacher": self._teacher_returns(run, greedy=greedy),
            }
            for who, (mean, error) in returns.items():
                numbers[f"test/{who}_return{ending}"] = mean
                numbers[f"test/{who}_return{ending}_standard_error"] = error
        return numbers

    def _play(self, network: nn.Module, run: FinishedRun, *, greedy: bool) -> tuple[float, float]:
        with one_thread():
            played = play(
                network,
                self.settings,
                num_episodes=self.num_episodes,
                greedy=greedy,
                seed=self.seed,
                device=run.module.device,
                progress=run.show_progress,
            )
        return played.mean, played.standard_error

    def _teacher_returns(self, run: FinishedRun, *, greedy: bool) -> tuple[float, float]:
        asked = {
            "teacher_sha256": fingerprint(self.teacher),
            "settings": asdict(self.settings),
            "num_episodes": self.num_episodes,
            "greedy": greedy,
            "seed": self.seed,
        }
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        path = self.cache / f"{name}.json"
        known = read_json(path)
        if known is None or known.get("asked") != asked:
            mean, error = self._play(self.teacher, run, greedy=greedy)
            known = {"asked": asked, "mean": mean, "standard_error": error}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
        return known["mean"], known["standard_error"]
