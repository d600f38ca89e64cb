"""Teach a policy to answer as another one: an ordinary LightningModule.

Nothing in it knows of derivative matching; a ``SobolevCallback`` adds that from outside.
"""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_sobolev._checks import require
from lightning_sobolev._types import Query, Teacher
from lightning_sobolev.atari import CenteredPolicy, StatesDataModule
from lightning_sobolev.experiments.common.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    configured,
)
from lightning_sobolev.experiments.distillation.heads import policy_metrics
from lightning_sobolev.experiments.distillation.teacher import player_of
from lightning_sobolev.experiments.run.sharding import shard
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.functional.projections import draw, generator_for
from lightning_sobolev.metrics import DerivativeCosine, DerivativeNMSE
from lightning_sobolev.points import Points
from lightning_sobolev.policies import DiscreteHead, Head, PolicyDataModule, PolicyStudent
from lightning_sobolev.queries import with_queries
from lightning_sobolev.teachers import NetworkTeacher


class DistillationModule(pl.LightningModule):
    r"""Bring a student's policy to its teacher's over recorded states.

    By default the loss is :math:`\mathrm{KL}(\text{teacher} \,\|\, \text{student})`.

    A batch is ``{"x": uint8 [batch, *in], "log_probs": [batch, actions], "index": [batch]}``, or
    with vector observations ``x`` in floating point, and as ``log_probs`` whatever the head stores.
    Logs ``train/loss`` and ``val/kl``; at test time ``test/kl``, ``test/action_disagreement``,
    ``test/merged_disagreement`` and, given a teacher, ``test/derivative_nmse`` and
    ``test/derivative_cosine`` of the log-probabilities' full Jacobian, which costs as many backward
    passes of student and teacher as there are actions.

    Args:
        net: Maps float states in 0..1 to logits.
        optimizer: Makes the optimizer of the student's parameters.
        scheduler: Makes the schedule of its learning rate; None leaves the rate as it is.
        teacher: Answers with the derivatives to compare with at test time. Not a part of the
            module: neither trained nor saved with it.
        same_actions: Groups of actions that do the same, for the merged disagreement.
        num_derivative_states: Test states on which derivatives are compared, whole batches from
            the first on: a full Jacobian costs far more than an answer.
        loss: What is minimised: ``kl`` of the student from the teacher, ``reverse_kl`` of the
            teacher from the student, or ``cross_entropy`` with the teacher's probabilities, whose
            gradient is that of ``kl``. Validation and test log ``kl`` in every case.
        head: What outputs mean; None takes logits of a choice. Of a Gaussian the test logs
            ``test/action_distance`` in place of both disagreements.
        queries: Points that take the place of a share of every training batch's states; the teacher
            is asked for its answers there. None trains on the stored states alone.
        seed: Seed of the queries.

    Raises:
        ValueError: If the loss is unknown, or there are queries and no network to ask.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        teacher: Teacher | None = None,
        same_actions: Sequence[Sequence[int]] = (),
        num_derivative_states: int = 256,
        loss: str = "kl",
        head: Head | None = None,
        queries: Points | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.head = DiscreteHead() if head is None else head
        can_ask = queries is None or isinstance(teacher, NetworkTeacher)
        require(can_ask, "teacher", "a NetworkTeacher to ask queries of", type(teacher).__name__)
        unsaved = ["net", "optimizer", "scheduler", "teacher", "head", "queries"]
        self.save_hyperparameters(ignore=unsaved)
        self.net, self.teacher, self.queries, self.seed = net, teacher, queries, seed
        self.optimizer, self.scheduler = optimizer, scheduler
        self.value_loss, self.num_derivative_states = self.head.loss(loss), num_derivative_states
        self.val_kl = policy_metrics(self.head)["kl"]
        policies = policy_metrics(self.head, same_actions)
        self.policies = MetricCollection(policies, prefix="test/", compute_groups=False)
        self.derivatives = MetricCollection(
            {"derivative_nmse": DerivativeNMSE(), "derivative_cosine": DerivativeCosine()},
            prefix="test/",
            compute_groups=False,
        )

    def setup(self, stage: str) -> None:
        """Center a student on the mean of the states it is going to learn from."""
        net, states = self.net, self._states()
        if stage != "fit" or states is None:
            return
        if isinstance(net, CenteredPolicy):
            net.center_on(states.mean_state)
        if isinstance(net, PolicyStudent) and isinstance(states, PolicyDataModule):
            net.standardize_by(*states.units)

    def _states(self) -> StatesDataModule | None:
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return datamodule if isinstance(datamodule, StatesDataModule) else None

    @property
    def players(self) -> dict[str, nn.Module]:
        """The networks of teacher and student; an error where the teacher is none that plays."""
        if not isinstance(self.teacher, NetworkTeacher):
            got = f"teacher={type(self.teacher).__name__}"
            raise ValueError(f"module must have a NetworkTeacher to play against, got {got}")
        return {"teacher": player_of(self.teacher), "student": self.net}

    def configure_model(self) -> None:
        """Split the network over processes where the strategy asks for it."""
        shard(self.net, self.device_mesh)

    def forward(self, x: UInt8[Tensor, "batch *in"]) -> Float[Tensor, "batch actions"]:
        """Return the student's log-probabilities, or what else the head stores."""
        return self.head.answers(self.net(self.scaled(x)))

    def scaled(self, x: UInt8[Tensor, "batch *in"]) -> Float[Tensor, "batch *in"]:
        """Return states as the networks take them: bytes in 0..1, vectors as they are."""
        scaled = x.to(next(self.net.parameters()).dtype, copy=True)
        return scaled.div_(255) if x.dtype == torch.uint8 else scaled

    def observed(self, x: Tensor) -> tuple[nn.Module, Tensor]:
        """Return the network whose derivatives are compared, and what it is called with."""
        scaled = self.scaled(x)
        if isinstance(self.net, PolicyStudent):
            return self.net.body, self.net.standardized(scaled)
        return self.net, scaled

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's mean loss."""
        if self.queries is not None:
            # Into the batch itself, where a teacher of derivatives looks things up. The generator
            # is a function of what a resumed run knows.
            place = (self.seed, self.global_rank, self.current_epoch, batch_idx)
            how = (self.queries, generator_for(*place), self.global_step)
            asked = with_queries(batch["x"], batch["log_probs"], self._answer, *how)
            batch["x"], batch["log_probs"] = asked
        loss = self.value_loss(self(batch["x"]), batch["log_probs"]).mean()
        self.log("train/loss", loss, batch_size=len(batch["x"]))
        return loss

    def _answer(self, x: Tensor) -> Tensor:
        """Ask the teacher as it was asked for the stored answers."""
        return self.head.answers(self.players["teacher"](self.scaled(x)))

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Log the divergence on held-out states."""
        self.val_kl.update(self(batch["x"]), batch["log_probs"])
        self.log("val/kl", self.val_kl, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], *_: int) -> None:
        """Compare the policies and, given a teacher, their input derivatives."""
        self.policies.update(self(batch["x"]), batch["log_probs"])
        self.log_dict(self.policies)
        if self.teacher is None or self._compared >= self.num_derivative_states:
            return
        self._compared += len(batch["x"])
        net, x = self.observed(batch["x"])
        student = tape_jet(lambda states: self.head.compared(net(states)), x)
        # Every basis direction: nothing random is left for the generator to decide.
        shape, unused = student.value.shape, torch.Generator()
        cotangents = draw("basis", shape, num_projections=None, generator=unused).to(x)
        targets = self.teacher.at(Query(x, self.head.compared, batch)).vjp(cotangents)
        found = student.vjp(cotangents)
        self.derivatives["derivative_nmse"].update(found, targets)
        # deviations that are the same in every state have a derivative without a direction
        told = targets.flatten(1).abs().amax(1) > 0
        self.derivatives["derivative_cosine"].update(found[told], targets[told])
        self.log_dict(self.derivatives)

    def on_train_epoch_end(self) -> None:
        """Say how many states were trained on; a data set may have grown."""
        if (states := self._states()) is not None:
            self.log("train_states", float(states.num_train_states), sync_dist=True)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device: it is no submodule, so nothing else does."""
        if isinstance(self.teacher, NetworkTeacher):
            self.teacher.to(self.device)

    def on_test_start(self) -> None:
        """Bring the teacher here again, for a test without a fit."""
        self._compared = 0
        self.on_fit_start()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return configured(self.net.parameters(), self.optimizer, self.scheduler)


def distillation(module: pl.LightningModule) -> DistillationModule:
    """Return what a callback was called with, if it is a distillation."""
    if not isinstance(module, DistillationModule):
        raise ValueError(f"module must be a DistillationModule, got {type(module).__name__}")
    return module
