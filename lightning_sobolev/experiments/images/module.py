"""Train a classifier on labels, or on another classifier: an ordinary LightningModule.

Nothing in it knows of derivative matching; a ``SobolevCallback`` adds that from outside.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lightning_sobolev._types import Query
from lightning_sobolev.experiments.common.module import NetModule
from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.run.stored import load_module
from lightning_sobolev.functional.discrepancies import kl
from lightning_sobolev.spec import OUTPUT_MAPS
from lightning_sobolev.teachers import NetworkTeacher

_log_softmax = OUTPUT_MAPS["log_softmax"]


class ClassificationModule(NetModule):
    r"""Cross-entropy with the labels, or :math:`\mathrm{KL}(\text{teacher} \,\|\, \text{student})`.

    A batch is ``{"x": [batch, *pixels], "y": [batch]}``. Logs ``train/loss``, ``val/accuracy`` and
    ``test/accuracy``, of the labels in every case.

    Args:
        net: Maps images to logits.
        optimizer: Makes the optimizer of its parameters.
        scheduler: Makes the schedule of the learning rate.
        num_classes: Number of classes.
        teacher: Whose probabilities are learned in place of the labels. Not a part of the module.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        num_classes: int = 10,
        teacher: NetworkTeacher | None = None,
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        self.teacher = teacher
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the batch's mean loss."""
        logits = self.net(batch["x"])
        if self.teacher is None:
            loss = cross_entropy(logits, batch["y"])
        else:
            answers = self.teacher.at(Query(batch["x"], _log_softmax)).value.detach()
            loss = kl(_log_softmax(logits), answers).mean()
        self.log("train/loss", loss, batch_size=len(batch["x"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Count right answers on held-out images."""
        self.val_accuracy.update(self.net(batch["x"]), batch["y"])
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], *_: int) -> None:
        """Count right answers on the test images."""
        self.test_accuracy.update(self.net(batch["x"]), batch["y"])
        self.log("test/accuracy", self.test_accuracy)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device: it is no submodule, so nothing else does."""
        if self.teacher is not None:
            self.teacher.to(self.device)


def stored_classifier(folder: str | Path) -> NetworkTeacher:
    """Return the network of a finished run as a teacher, with the weights that it tested."""
    module = load_module(folder)
    if not isinstance(module, ClassificationModule):
        name = type(module).__name__
        raise ValueError(f"folder must be that of a run of a classifier, got {folder} of a {name}")
    return NetworkTeacher(module.net)
