"""A teacher's recorded play over vector observations as batches."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev.atari.recordings.played import PlayedDataModule
from lightning_sobolev.atari.recordings.record import identity_of
from lightning_sobolev.policies.agents import Policy, load_policy
from lightning_sobolev.policies.environments import EnvSettings
from lightning_sobolev.policies.networks import PolicyStudent
from lightning_sobolev.policies.recording import PolicyRecording, record_policy
from lightning_sobolev.standardization import Standardizer


class PolicyDataModule(PlayedDataModule):
    """Records a teacher's play where it is missing, and serves it.

    Training, validation and test states come from different episodes. A batch is ``x``, whole
    observations ``[batch, obs]`` in float32, ``log_probs``, the teacher's answers
    (log-probabilities, or means and logarithms of deviations), ``index``, and, under a trainer, the
    units of the :class:`PolicyStudent` in the module.

    Args:
        root: Folder of all recordings; this one is in a folder named after the environment.
        settings: What is played.
        teacher: Who plays: what :func:`load_policy` takes.
        **how: ``sizes``, ``recording``, ``check``, ``fraction``, ``batch_size`` ... as
            :class:`~lightning_sobolev.atari.RecordingDataModule` takes them.
    """

    def __init__(
        self, root: str | Path, settings: EnvSettings, teacher: Policy, **how: Any
    ) -> None:
        folder = Path(root) / settings.id.replace("/", "_").replace(":", "_")
        super().__init__(folder, load_policy(teacher, settings)[0], **how)
        self.settings = settings

    def record(self, folder: Path, **how: Any) -> PolicyRecording:
        """Record what is missing below a folder; ``how`` is that of :func:`record_policy`."""
        return record_policy(folder, self.settings, self.teacher, **how)

    def identity(self, **who: Any) -> dict[str, Any]:
        """Return what decides every byte of a recording but its length."""
        return identity_of(self.settings, self.teacher, **who)

    def reopen(self, folder: Path, *, verify: bool = True) -> PolicyRecording:
        """Open a recording that is there."""
        return PolicyRecording(folder, verify=verify)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        """Say in the batch what the student sees and in which units, for a teacher to answer in."""
        rows, num_observations = batch["x"].shape
        parts = self.trainer.lightning_module.modules() if self.trainer is not None else ()
        students = [one for one in parts if isinstance(one, PolicyStudent)]
        # another network is called with the observations as they are
        student = students[0] if students else PolicyStudent(nn.Identity(), num_observations)
        return {**batch, **student.to(batch["x"].device).units(rows)}

    @property
    def units(self) -> tuple[Float[Tensor, " obs"], Float[Tensor, " obs"]]:
        """Mean and deviation of the chosen training states; there after :meth:`setup`."""
        train = self._dataset("train")
        x = train[torch.arange(len(train))]["x"]
        fitted = Standardizer.fit(x, x)
        return fitted.x_mean, fitted.x_std
