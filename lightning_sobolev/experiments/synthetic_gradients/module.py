"""Train a classifier in sections that do not wait for the gradient from above."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_sobolev.experiments.common.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    configured,
)
from lightning_sobolev.experiments.synthetic_gradients.gradient_error import gradient_error
from lightning_sobolev.experiments.synthetic_gradients.kinds import kind_named
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import ModelSettings, build_models
from lightning_sobolev.experiments.synthetic_gradients.prediction import check_models
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import Step, build_stages, take_step

_SCALES = "scales"
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
        scheduler: Builds the schedule of each of them.
        kind: What passes a cut: ``noprop``, ``direct``, ``vfbn``, ``critic``, ``sobolev`` or
            ``backprop``, see ``kinds.KINDS``.
        input_shape: Shape of one input.
        num_classes: Number of classes.
        models: Size of the models, or a model for every cut.
        matching: What models are taught.
        probe_rows: Pictures on which predictions are compared with the truth; 0 for none.

    Raises:
        ValueError: If the network cannot be cut there, a model has another shape than its cut, or
            the kind is unknown.
    """

    def __init__(
        self,
        net: nn.Sequential,
        cuts: Sequence[int] | int,
        optimizer: OptimizerFactory,
        *,
        model_optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        kind: str = "sobolev",
        input_shape: Sequence[int],
        num_classes: int = 10,
        models: ModelSettings | Sequence[nn.Module] = _MODELS,
        matching: Matching = _MATCHING,
        probe_rows: int = 512,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.kind, self.probe_rows, self.num_classes = kind_named(kind), probe_rows, num_classes
        sections = split(net, cuts)
        shapes = activation_shapes(sections, input_shape, num_classes)
        if isinstance(models, ModelSettings):
            models = build_models(self.kind, shapes, num_classes, models)
        else:
            check_models(models, self.kind, shapes, next(net.parameters()))
        self.sections, self.models = nn.ModuleList(sections), nn.ModuleList(models)
        self.stages = build_stages(sections, models, self.kind, matching, self.manual_backward)
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
        """Refuse what this manual optimization cannot do.

        Raises:
            ValueError: If there are several processes, or losses would have to be scaled.
        """
        if self.trainer.world_size > 1:
            raise ValueError(
                "the sections must live in one process, got a trainer with "
                f"{self.trainer.world_size}"
            )
        if self.trainer.precision == "16-mixed":
            raise ValueError("trainer.precision must need no loss scaling, got '16-mixed'")

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Move every section along the gradient it got, and every model towards its target."""
        del batch_idx
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
        for scheduler in _listed(self.lr_schedulers()):
            scheduler.step()
        if due:
            self._log_step(step, batch["y"])

    def _log_step(self, step: Step, y: Tensor) -> None:
        numbers: dict[str, Tensor | float] = {
            "loss": step.loss,
            "accuracy": multiclass_accuracy(step.logits, y, self.num_classes, average="micro"),
            "epochs": self.global_step / self.trainer.num_training_batches,
        }
        for cut, terms in step.terms.items():
            numbers |= {f"cut_{cut}/{name}": term for name, term in terms.items()}
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
        errors = gradient_error(self.sections, self.models, x, y, self.kind)  # type: ignore[arg-type]
        found = {f"cut_{cut}/{name}": e for cut, of in errors.items() for name, e in of.items()}
        cosines = [of["gradient_cosine"] for of in errors.values()]
        found["gradient_cosine"] = sum(cosines) / len(cosines)
        self.log_dict({f"{stage}/{name}": e for name, e in found.items()}, batch_size=len(y))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimizer for every part that is trained, the highest section first."""
        factories = [(s.section, self.optimizer) for s in self.stages[::-1] if s.is_trained]
        factories += [(model, self.model_optimizer) for model in self.models]
        built = []
        for part, factory in factories:
            trained = [p for p in part.parameters() if p.requires_grad]
            if trained:  # an exact model has none
                built.append(configured(trained, factory, self.scheduler))
        return built  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the running scales of what models are taught."""
        checkpoint[_SCALES] = [
            {name: {"mean": mean, "count": n} for name, (mean, n) in stage.scales.state.items()}
            for stage in self.stages
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the running scales back."""
        for stage, saved in zip(self.stages, checkpoint[_SCALES], strict=True):
            stage.scales.state = {name: (s["mean"], int(s["count"])) for name, s in saved.items()}


def _listed(found: Any) -> list[Any]:
    """Return what the trainer has one or many of as a list."""
    return found if isinstance(found, list) else [found]
