"""Train a classifier in sections that do not wait for the gradient from above."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.experiments.run.optimizers import cosine_decay
from lightning_sobolev.experiments.synthetic_gradients.kinds import kind_named
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.messages import check_models
from lightning_sobolev.experiments.synthetic_gradients.models import ModelSettings, build_models
from lightning_sobolev.experiments.synthetic_gradients.probe import probe
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import Step, take_step
from lightning_sobolev.objective import RunningScales

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
        kind: What passes a cut: ``noprop``, ``direct``, ``vfbn``, ``critic``, ``sobolev`` or
            ``backprop``, see ``decoupled.KINDS``.
        input_shape: Shape of one input.
        num_classes: Number of classes.
        models: Size of the models, or a model for every cut.
        matching: What models are taught.
        lr: Learning rate of the sections' first step; it falls to zero along half a cosine.
        model_lr: The same of the models.
        max_steps: Length of the training.
        optimizer: adam, adamw or sgd.
        probe_rows: Pictures on which messages are compared with the truth; 0 for none.

    Raises:
        ValueError: If the network cannot be cut there, a model has another shape than its cut, or
            the kind is unknown.
    """

    def __init__(
        self,
        net: nn.Sequential,
        cuts: Sequence[int] | int,
        *,
        kind: str = "sobolev",
        input_shape: Sequence[int],
        num_classes: int = 10,
        models: ModelSettings | Sequence[nn.Module] = _MODELS,
        matching: Matching = _MATCHING,
        lr: float = 1e-3,
        model_lr: float = 1e-3,
        max_steps: int = 1000,
        optimizer: str = "adam",
        probe_rows: int = 512,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.kind = kind_named(kind)
        sections = split(net, cuts)
        shapes = activation_shapes(sections, input_shape, num_classes)
        if isinstance(models, ModelSettings):
            models = build_models(self.kind, shapes, num_classes, models)
        else:
            check_models(models, self.kind, shapes, next(net.parameters()))
        self.sections, self.models = nn.ModuleList(sections), nn.ModuleList(models)
        self.scales = [RunningScales() for _ in models]
        self.matching, self.lr, self.model_lr = matching, lr, model_lr
        self.max_steps, self.optimizer, self.probe_rows = max_steps, optimizer, probe_rows

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
        """Move every section along the message it got, and every model towards its target."""
        del batch_idx
        # Entries cost as much as the step of a network as small as these, and between two of them
        # nobody reads.
        number, every = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = number % every == 0 or number == self.trainer.max_steps
        optimizers: list[LightningOptimizer] = _listed(self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        step = take_step(
            list(self.sections),
            list(self.models),
            batch["x"],
            batch["y"],
            kind=self.kind,
            matching=self.matching,
            scales=self.scales,
            backward=self.manual_backward,
        )
        # Only the wrapper counts steps, and a batch is one step however many optimizers there are.
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            optimizer.optimizer.step()
        for scheduler in _listed(self.lr_schedulers()):
            scheduler.step()
        if due:
            self._log_step(step, batch["y"])

    def _log_step(self, step: Step, y: Tensor) -> None:
        accuracy = (step.logits.argmax(-1) == y).float().mean()
        epochs = self.global_step / self.trainer.num_training_batches
        numbers: dict[str, Tensor | float] = {
            "loss": step.loss,
            "accuracy": accuracy,
            "epochs": epochs,
        }
        for cut, terms in step.terms.items():
            numbers |= {f"cut_{cut}/{name}": term for name, term in terms.items()}
        self.log_dict({f"train/{name}": number for name, number in numbers.items()})

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure accuracy and, on the first batches, how near the models come."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure the same on test pictures."""
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        x, y = batch["x"], batch["y"]
        logits = self(x)
        accuracy = (logits.argmax(-1) == y).float().mean()
        found = {"loss": cross_entropy(logits, y), "accuracy": accuracy}
        self.log_dict(
            {f"{stage}/{name}": number for name, number in found.items()}, batch_size=len(y)
        )
        if batch_idx * len(y) < self.probe_rows:
            self._probe(stage, x, y)

    def _probe(self, stage: str, x: Tensor, y: Tensor) -> None:
        compared = probe(list(self.sections), list(self.models), x, y, self.kind)
        cosines = []
        for cut, nearness in compared.items():
            numbers = nearness.numbers()
            cosines.append(numbers["gradient_cosine"])
            names = {f"{stage}/cut_{cut}/{name}": value for name, value in numbers.items()}
            self.log_dict(names, batch_size=len(y))
        if cosines:
            mean = sum(cosines) / len(cosines)
            self.log(f"{stage}/gradient_cosine", mean, batch_size=len(y))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimizer for every part that is trained, the highest section first."""
        sections = list(self.sections)[::-1]
        if self.kind.message == "nothing":
            sections = sections[:1]
        rates = [(section, self.lr) for section in sections]
        rates += [(model, self.model_lr) for model in self.models]
        built = []
        for part, lr in rates:
            trained = [p for p in part.parameters() if p.requires_grad]
            if trained:
                built.append(
                    cosine_decay(trained, optimizer=self.optimizer, lr=lr, max_steps=self.max_steps)
                )
        return built  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the running scales of what models are taught."""
        checkpoint[_SCALES] = [
            {name: {"mean": mean, "count": count} for name, (mean, count) in scales.state.items()}
            for scales in self.scales
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the running scales back."""
        for scales, saved in zip(self.scales, checkpoint[_SCALES], strict=True):
            scales.state = {name: (s["mean"], int(s["count"])) for name, s in saved.items()}


def _listed(found: Any) -> list[Any]:
    """Return what the trainer has one or many of as a list."""
    return found if isinstance(found, list) else [found]
