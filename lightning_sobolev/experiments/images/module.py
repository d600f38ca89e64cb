"""Train a classifier on labels, or on another classifier: an ordinary LightningModule.

Nothing in it knows of derivative matching; a ``SobolevCallback`` adds that from outside.
"""

from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lightning_sobolev.experiments.distillation.module import log_softmax
from lightning_sobolev.experiments.run.optimizers import cosine_decay
from lightning_sobolev.experiments.run.saving import whole_checkpoint
from lightning_sobolev.functional.discrepancies import kl
from lightning_sobolev.teachers import NetworkTeacher


class ClassificationModule(pl.LightningModule):
    r"""Cross-entropy with the labels, or :math:`\mathrm{KL}(\text{teacher} \,\|\, \text{student})`.

    A batch is ``{"x": [batch, *pixels], "y": [batch]}``. Logs ``train/loss``, ``val/accuracy`` and
    ``test/accuracy``, of the labels in every case.

    Args:
        net: Maps pictures to logits.
        num_classes: Number of classes.
        lr: Learning rate of the first step; it falls to zero along half a cosine.
        max_steps: Length of the training.
        optimizer: adam, adamw or sgd.
        teacher: Whose probabilities are learned in place of the labels. Not a part of the module.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        lr: float = 1e-3,
        max_steps: int = 1000,
        optimizer: str = "adam",
        teacher: NetworkTeacher | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "teacher"])
        self.net, self.teacher = net, teacher
        self.lr, self.max_steps, self.optimizer = lr, max_steps, optimizer
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Float[Tensor, "batch *pixels"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's mean loss."""
        del batch_idx
        logits = self.net(batch["x"])
        if self.teacher is None:
            loss = cross_entropy(logits, batch["y"])
        else:
            answers = self.teacher.at(batch["x"], log_softmax).value.detach()
            loss = kl(log_softmax(logits), answers).mean()
        self.log("train/loss", loss, batch_size=len(batch["x"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count right answers on held-out pictures."""
        del batch_idx
        self.val_accuracy.update(self.net(batch["x"]), batch["y"])
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count right answers on the test pictures."""
        del batch_idx
        self.test_accuracy.update(self.net(batch["x"]), batch["y"])
        self.log("test/accuracy", self.test_accuracy)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device: it is no submodule, so nothing else does."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return cosine_decay(
            self.net.parameters(), optimizer=self.optimizer, lr=self.lr, max_steps=self.max_steps
        )


def stored_classifier(folder: str | Path) -> NetworkTeacher:
    """Return the network of a finished run as a teacher.

    Args:
        folder: The folder of the run.

    Returns:
        The teacher, with the weights that the run ended with.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    notes, weights = Path(folder) / ".hydra/config.yaml", Path(folder) / "checkpoints/last.ckpt"
    if not notes.is_file() or not weights.is_file():
        raise ValueError(f"folder must be that of a finished run of a classifier, got {folder}")
    net: nn.Module = instantiate(OmegaConf.load(notes).model)
    stored = torch.load(whole_checkpoint(weights), map_location="cpu", weights_only=True)
    state = {
        key.removeprefix("net."): value
        for key, value in stored["state_dict"].items()
        if key.startswith("net.")
    }
    net.load_state_dict(state)
    return NetworkTeacher(net)


class PixelClassifier(nn.Module):
    """A network on pictures of mean zero and deviation one, as a network on pixels in 0..1.

    Args:
        net: The network.
        mean: Of the pixels, ``[channels, 1, 1]``.
        std: Their deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        logits: Tensor = self.net((pixels - self.mean) / self.std)
        return logits
