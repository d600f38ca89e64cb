"""Train a classifier in sections that do not wait for the gradient from above."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    configured,
)
from lightning_sobolev.experiments.common.tables import check_counts
from lightning_sobolev.experiments.synthetic_gradients.gradient_error import gradient_error
from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import (
    ModelSettings,
    build_models,
    check_models,
)
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import (
    Step,
    build_stages,
    take_step,
    teach_again,
)

_MODELS, _MATCHING = ModelSettings(), Matching()


class DecoupledModule(pl.LightningModule):
    """A network that is cut, with a model at every cut that answers for what lies above.

    A batch is ``{"x": [batch, *in], "y": int64 [batch]}``. Every section and every model has an
    optimizer of its own. Logs ``train/loss``, ``train/accuracy``, ``train/epochs`` and, for every
    cut, what its model is taught by (``train/cut_1/value`` and so on); ``val/loss``,
    ``val/accuracy`` and, for every cut, ``gradient_cosine``, ``norm_ratio`` and ``value_nmse`` on
    the first ``probe_rows`` validation pictures; the same at test time, and
    ``test/gradient_cosine``, their mean over the cuts.

    Args:
        net: The network, logits last.
        cuts: Numbers of the layers before which it is cut; a number n cuts at the n highest places.
        optimizer: Builds the optimizer of a section.
        model_optimizer: Builds that of a model; the same as of the sections when None.
        model_updates: Updates of every model in a step, all by the same activation and target. Each
            costs the model's forward pass and its double backward pass; no section runs again.
        scheduler: Builds the schedule of each of them.
        kind: What passes a cut: ``noprop``, ``direct``, ``vfbn``, ``critic``, ``sobolev`` or
            ``backprop``, see ``kinds.KINDS``.
        input_shape: Shape of one input.
        num_classes: Number of classes.
        models: Size of the models, or a model for every cut.
        matching: What models are taught.
        probe_rows: Pictures on which predictions are compared with the truth; 0 for none.
    """

    def __init__(
        self,
        net: nn.Sequential,
        cuts: Sequence[int] | int,
        optimizer: OptimizerFactory,
        *,
        model_optimizer: OptimizerFactory | None = None,
        model_updates: int = 2,
        scheduler: SchedulerFactory | None = None,
        kind: str = "sobolev",
        input_shape: Sequence[int],
        num_classes: int = 10,
        models: ModelSettings | Sequence[nn.Module] = _MODELS,
        matching: Matching = _MATCHING,
        probe_rows: int = 512,
    ) -> None:
        super().__init__()
        require(kind in KINDS, "kind", f"one of {tuple(KINDS)}", kind)
        check_counts(1, model_updates=model_updates)
        self.automatic_optimization = False
        self.probe_rows, self.num_classes = probe_rows, num_classes
        self.model_updates = model_updates
        sections = split(net, cuts)
        shapes = activation_shapes(sections, input_shape, num_classes)
        are_given = not isinstance(models, ModelSettings)
        if isinstance(models, ModelSettings):
            models = build_models(KINDS[kind], shapes, num_classes, models)
        self.stages = build_stages(sections, models, KINDS[kind], matching)
        if are_given and models:
            check_models(models, KINDS[kind], shapes, next(net.parameters()))
        self.sections, self.models = nn.ModuleList(sections), nn.ModuleList(models)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.model_optimizer = optimizer if model_optimizer is None else model_optimizer
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Float[Tensor, "batch *in"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        for section in self.sections:
            x = section(x)
        return x

    def on_fit_start(self) -> None:
        """Refuse what this manual optimization cannot do."""
        world, precision = self.trainer.world_size, self.trainer.precision
        require(world == 1, "the number of processes", "1", world)
        mixed = precision == "16-mixed"
        require(not mixed, "trainer.precision", "without loss scaling", precision)

    def training_step(self, batch: Mapping[str, Tensor], *_: Any) -> None:
        """Move every section along the gradient it got, and every model towards its target."""
        # Entries cost as much as the step of a network as small as these, and between two of them
        # nobody reads.
        number, every = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = number % every == 0 or number == self.trainer.max_steps
        optimizers: list[LightningOptimizer] = _listed(self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        step = take_step(self.stages, batch["x"], batch["y"])
        # Only the wrapper counts steps, and a batch is one step however many optimizers there are.
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            optimizer.optimizer.step()
        of_models = optimizers[sum(stage.is_trained for stage in self.stages) :]
        if of_models:
            self._update_again(of_models, step, batch["y"])
        for scheduler in _listed(self.lr_schedulers()):
            scheduler.step()
        if due:
            self._log_step(step, batch["y"])

    def _update_again(self, of_models: list[LightningOptimizer], step: Step, y: Tensor) -> None:
        for _ in range(self.model_updates - 1):
            for optimizer in of_models:
                optimizer.zero_grad()
            teach_again(self.stages, step.pairs, y)
            for optimizer in of_models:
                optimizer.optimizer.step()

    def _log_step(self, step: Step, y: Tensor) -> None:
        accuracy = multiclass_accuracy(step.logits, y, self.num_classes, average="micro")
        epochs = self.global_step / self.trainer.num_training_batches
        numbers = {"loss": step.loss, "accuracy": accuracy, "epochs": epochs, **_by_cut(step.terms)}
        self.log_dict({f"train/{name}": number for name, number in numbers.items()})

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure accuracy and, on the first batches, how near the models come."""
        self._evaluate("val", self.val_accuracy, batch, batch_idx)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure the same on test pictures."""
        self._evaluate("test", self.test_accuracy, batch, batch_idx)

    def _evaluate(
        self, stage: str, accuracy: MulticlassAccuracy, batch: Mapping[str, Tensor], batch_idx: int
    ) -> None:
        x, y = batch["x"], batch["y"]
        logits = self(x)
        accuracy.update(logits, y)
        self.log(f"{stage}/loss", cross_entropy(logits, y), batch_size=len(y))
        self.log(f"{stage}/accuracy", accuracy, batch_size=len(y))
        if batch_idx * len(y) >= self.probe_rows or not self.models:
            return
        errors = gradient_error(self.stages, x, y)
        cosine = fmean(of["gradient_cosine"] for of in errors.values())
        found = {"gradient_cosine": cosine, **_by_cut(errors)}
        self.log_dict({f"{stage}/{name}": e for name, e in found.items()}, batch_size=len(y))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimizer for every part that is trained, the highest section first."""
        parts = [(s.section, self.optimizer) for s in self.stages[::-1] if s.is_trained]
        parts += [(model, self.model_optimizer) for model in self.models]
        trained = [([p for p in part.parameters() if p.requires_grad], by) for part, by in parts]
        # an exact model has no parameters
        return [configured(these, by, self.scheduler) for these, by in trained if these]  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how often models are updated, and the running scales of what they are taught."""
        checkpoint["model_updates"] = self.model_updates
        checkpoint["scales"] = [
            {name: {"mean": mean, "count": n} for name, (mean, n) in stage.scales.state.items()}
            for stage in self.stages
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the running scales back; refuse to go on with another number of updates."""
        found = checkpoint.get("model_updates", "none: it is of an earlier version")
        if found != self.model_updates:
            raise ValueError(
                f"model_updates of the checkpoint must be {self.model_updates}, got {found}; set "
                "the same or train anew"
            )
        for stage, saved in zip(self.stages, checkpoint["scales"], strict=True):
            stage.scales.state = {name: (s["mean"], int(s["count"])) for name, s in saved.items()}


def _by_cut(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"cut_{cut}/{name}": value for cut, of in found.items() for name, value in of.items()}


def _listed(found: Any) -> list[Any]:
    if found is None:  # no schedules
        return []
    return found if isinstance(found, list) else [found]
