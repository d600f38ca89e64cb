"""DAgger: between stretches of training the student plays and the teacher answers.

Note [resume]: what the student visited in a round is stored in a folder named after its identity,
which includes the student's weights, and the names are part of a checkpoint. So a round that is
finished is opened, one that was interrupted is continued, and neither depends on the run's folder.
"""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev.atari.recordings.dataset import Recorded, choose_fraction
from lightning_sobolev.atari.recordings.played import PlayedDataModule


class DAgger(pl.Callback):
    r"""Let the student play before every round but the first, and train on what it visited, too.

    The first round trains on the states that the teacher visited. Before every later one the
    student, as it is then, plays; the states join the training set of the data module, a
    :class:`RecordingDataModule` or ``policies.PolicyDataModule``, with the teacher's answers, and
    training goes on from the present weights. An epoch becomes a round, all of (nearly) the same
    length. Validation and test states stay those of the teacher's play.

    Args:
        rounds: Rounds in all; 1 trains on the teacher's states alone.
        num_states: States that are visited before every later round, of which the data module's
            ``fraction`` is used; None takes as many as the teacher's training states.
        beta: In round r the teacher takes each decision with probability :math:`\beta^r`; 0 leaves
            all of them to the student.
        student: Name of the submodule that is trained, a network from what is shown to answers.

    Source:
        Ross, Gordon and Bagnell 2011, A reduction of imitation learning and structured prediction
        to no-regret online learning, algorithm 3.1 and section 4. There every round trains anew.
    """

    def __init__(
        self,
        rounds: int = 3,
        *,
        num_states: int | None = None,
        beta: float = 0.0,
        student: str = "net",
    ) -> None:
        counts = {"rounds": rounds, "num_states": 1 if num_states is None else num_states}
        for name, count in counts.items():
            require(type(count) is int and count >= 1, name, "a whole number >= 1", count)
        require(0.0 <= beta < 1.0, "beta", "in [0, 1)", beta)
        self.rounds, self.num_states, self.beta, self.student = rounds, num_states, beta, student
        self.visited: list[Recorded] = []
        self._data: Any = None  # the data module of a fit
        self._steps = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make an epoch of a fit a round; refuse other data and trainings of no fixed length."""
        self._data = None
        if stage != "fit":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PlayedDataModule):
            found = type(data).__name__
            raise ValueError(
                f"datamodule must be a RecordingDataModule or PolicyDataModule for DAgger, "
                f"got {found}"
            )
        enough = trainer.max_steps >= self.rounds
        least = f"at least the {self.rounds} rounds"
        require(enough, "max_steps of the trainer", least, trainer.max_steps)
        _student(pl_module, self.student)
        self._steps = -(-trainer.max_steps * trainer.accumulate_grad_batches // self.rounds)
        self._data, self.visited = data, []
        count = self._states_per_round
        choose_fraction(count, count, data.fraction, data.seed)  # that it leaves none is said now
        data.steps_per_epoch = self._steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a round, as Lightning goes on from a checkpoint between two without saying so."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the student play if the round that begins has not been played yet."""
        # a trainer that cuts epochs short has more of them than there are rounds
        due = min(trainer.current_epoch, self.rounds - 1)
        if len(self.visited) < due - 1:
            text = f"ckpt must come from a run with the same rounds: round {due} begins"
            raise ValueError(f"{text}, got {len(self.visited)} played rounds")
        if len(self.visited) < due:
            count, student = self._states_per_round, _student(pl_module, self.student)
            rank_zero_info(f"Round {due}: the student plays {count} states, the teacher answers.")
            has_bar = trainer.progress_bar_callback is not None
            how = {"beta": self.beta**due, "num_states": count, "has_bar": has_bar}
            self._join(self._data.record_round(due, student, **how))

    def _join(self, recording: Recorded) -> None:
        self._data.extend(recording, self._states_per_round)
        self.visited.append(recording)

    @property
    def _states_per_round(self) -> int:
        return self.num_states or int(self._data.sizes.train)

    def state_dict(self) -> dict[str, Any]:
        """Return the names of what the student has visited, and the length of a round."""
        return {"visited": [one.folder.name for one in self.visited], "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what the student had visited; refuse rounds of another length."""
        if self._data is None:  # a test of stored weights
            return
        if (steps := state_dict["steps"]) != self._steps:
            text = f"ckpt must come from a run with rounds of {self._steps} batches"
            raise ValueError(f"{text}, got rounds of {steps}")
        for name in state_dict["visited"]:
            self._join(self._data.reopen(self._data.rounds_folder / name))


def _student(pl_module: pl.LightningModule, name: str) -> nn.Module:
    try:
        student: nn.Module = pl_module.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"student must name a submodule, got {name!r} ({error})") from error
    if any(hasattr(parameter, "device_mesh") for parameter in student.parameters()):
        text = "rounds need the whole student in every process, got one that is split over them"
        raise ValueError(f"{text}: train with trainer=cpu, gpu or ddp")
    return student
