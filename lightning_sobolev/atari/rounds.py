"""Rounds of DAgger: between stretches of training the student plays and the teacher answers.

Round 0 trains on the states that the teacher visited. Before every later round the student, as it
is then, plays; the states it visits join the training set with the teacher's answers, and training
goes on from the present weights. One epoch is one round, all of (nearly) the same length.

Note [resume]: the play of a round is stored in a folder named after its identity, which includes
the student's weights, and the names are part of a checkpoint. So a round that is finished is
opened, one that was interrupted is continued, and neither depends on the folder of the run.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.recording import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    r"""How a student's own states join the training set.

    Args:
        number: Rounds in all; 1 trains on the teacher's states alone.
        num_states: States that are visited before every later round.
        beta: In round r the teacher takes each decision with probability :math:`\beta^r`; 0 leaves
            all of them to the student.
        student: Name of the submodule that is trained, a network from scaled stacks to logits.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Ross, Gordon and Bagnell 2011, A reduction of imitation learning and structured prediction
        to no-regret online learning, algorithm 3.1 and section 4. There every round trains anew.
    """

    number: int = 1
    num_states: int = 40_000
    beta: float = 0.0
    student: str = "net"

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.number), ("round_states", self.num_states)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"beta must be in [0, 1), got {self.beta}")

    def behavior(self, number: int, plain: Behavior) -> Behavior:
        """Say who acts in a round.

        Args:
            number: Which round.
            plain: The behavior of round 0.

        Returns:
            The same with the teacher's share in this round.
        """
        return replace(plain, beta=self.beta**number)

    def steps(self, trainer: pl.Trainer) -> int:
        """Count the batches of a round.

        Args:
            trainer: Knows the length of the training.

        Returns:
            The training's batches over the rounds, rounded up; the last round has what is left.

        Raises:
            ValueError: If the training has no fixed length.
        """
        if trainer.max_steps < self.number:
            raise ValueError(
                f"max_steps of the trainer must be at least the {self.number} rounds, "
                f"got {trainer.max_steps}"
            )
        return -(-trainer.max_steps * trainer.accumulate_grad_batches // self.number)


class Visits:
    """The recordings of the rounds so far; see Note [resume].

    Args:
        folder: Where they are, each in a folder of its own.
        rounds: What is planned.
    """

    def __init__(self, folder: Path, rounds: Rounds) -> None:
        self.folder = folder
        self.rounds = rounds
        self.recordings: list[Recording] = []
        self._steps = 0

    def catch_up(
        self, trainer: pl.Trainer, play: Callable[[int, nn.Module], Recording]
    ) -> list[Recording]:
        """Let the student play if the round that begins has not been played yet.

        Args:
            trainer: Knows the round and the student.
            play: Makes the recording of a round with a given student.

        Returns:
            The recordings of all rounds up to this one.

        Raises:
            ValueError: If earlier rounds are missing or were of another length.
        """
        steps = self.rounds.steps(trainer)
        # a trainer that cuts epochs short has more of them than there are rounds
        due = min(trainer.current_epoch, self.rounds.number - 1)
        # a training that begins anew has another student than the one whose visits are known
        self.recordings = self.recordings[:due]
        if len(self.recordings) < due - 1 or (due > 0 and self._steps != steps):
            raise ValueError(
                f"ckpt must come from a run with as many rounds and steps: round {due} of {steps} "
                f"batches begins, got {len(self.recordings)} played rounds of {self._steps}"
            )
        self._steps = steps
        if len(self.recordings) < due:
            rank_zero_info(
                f"Round {due}: the student plays {self.rounds.num_states} states, "
                "the teacher answers."
            )
            self.recordings.append(play(due, _student(trainer, self.rounds.student)))
        return self.recordings

    def place_of(self, identity: dict[str, Any]) -> Path:
        """Name the folder of a recording.

        Args:
            identity: What the recording is.

        Returns:
            Its folder.
        """
        text = json.dumps(identity, sort_keys=True).encode()
        return self.folder / hashlib.sha256(text).hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """Say what has been played; empty where nothing is going to be.

        Returns:
            The folders' names and the length of a round.
        """
        if self.rounds.number == 1:
            return {}
        return {"visits": [one.folder.name for one in self.recordings], "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Open what a checkpoint was trained on.

        Args:
            state: What :meth:`state_dict` said.

        Raises:
            ValueError: If a recording is gone or damaged.
        """
        self._steps = state["steps"]
        self.recordings = [self._open(self.folder / name) for name in state["visits"]]

    def _open(self, folder: Path) -> Recording:
        if not folder.exists():
            raise ValueError(
                f"{folder} must hold what the student of an earlier round visited, it is gone: put "
                "it back or start the training again"
            )
        return Recording(folder)


def _student(trainer: pl.Trainer, name: str) -> nn.Module:
    module = trainer.lightning_module
    if name not in dict(module.named_modules()):
        raise ValueError(f"student must name a submodule of {type(module).__name__}, got {name!r}")
    student: nn.Module = module.get_submodule(name)
    if any(hasattr(parameter, "device_mesh") for parameter in student.parameters()):
        raise ValueError(
            "rounds > 1 need the whole student in every process, got one that is split over them: "
            "train with trainer=cpu, gpu or ddp"
        )
    return student
