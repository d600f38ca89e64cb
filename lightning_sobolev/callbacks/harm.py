"""Do the derivative terms harm the values? Asked of a twin that is trained without them."""

import math
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_sobolev._checks import require
from lightning_sobolev.callbacks.twin import Silent, Twin

_LOGGED = "val/sobolev/harm_ratio"


class HarmCheck(Callback):
    """Warns where derivative terms raise the error of the values on validation data.

    A twin with the same first weights sees the same batches and is trained on the module's own
    loss, without derivative terms. At every validation both are judged by that loss, in eval mode,
    and the ratio (module over twin) is logged as ``val/sobolev/harm_ratio``. If its geometric mean
    over the last third of the validations is above ``threshold``, a warning says so when the
    training ends.

    It costs one plain step in every step, and one evaluation of both at every validation. With few
    validation rows and a small difference it may be wrong either way, and it knows nothing of
    places without validation data (docs/known-derivatives.md).

    Assumes automatic optimisation with one optimizer, on one device, and a training step that gives
    the loss of any batch it is handed.

    Args:
        threshold: Ratio from which on it warns.

    Raises:
        ValueError: If ``threshold`` is below 1.
    """

    def __init__(self, threshold: float = 1.2) -> None:
        super().__init__()
        require(threshold >= 1.0, "threshold", "at least 1", threshold)
        self.threshold = threshold
        self.ratios: list[float] = []
        self._twin: Twin | None = None
        self._judge: Silent | None = None
        self._sums = [0.0, 0.0]
        self._loaded: dict[str, Any] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check(trainer, pl_module)
        self._twin, self._judge = Twin(pl_module, trainer), Silent(pl_module, trainer)
        if self._loaded is not None:
            self._twin.load_state_dict(self._loaded)
            self._loaded = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._twin is not None
        self._twin.step(batch, batch_idx, like=trainer.optimizers[0])

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._twin is None or self._judge is None:
            return
        self._judge.module.load_state_dict(pl_module.state_dict())
        for each in (self._judge, self._twin):
            each.module.eval()
        self._sums = [0.0, 0.0]

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._twin is None or self._judge is None:
            return
        for place, each in enumerate((self._judge, self._twin)):
            loss = each.loss(batch, batch_idx)
            self._sums[place] += 0.0 if loss is None else float(loss)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._twin is None:
            return
        self._twin.module.train()
        own, other = self._sums
        if trainer.sanity_checking or not (own > 0.0 and other > 0.0):
            return
        self.ratios.append(own / other)
        pl_module.log(_LOGGED, self.ratios[-1])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ratio = self.ratio
        if ratio is not None and ratio > self.threshold:
            warnings.warn(
                f"the derivative terms raise the error of the values: the validation loss is "
                f"{ratio:.2f} times that of a twin trained without them. First look at the sign "
                "and the units of the derivatives (forces are minus the gradient; examine_labels "
                "finds both in stored ones). Where they are right, take a small balanced weight "
                "(Balanced(0.1)), more points, or leave the terms out: derivatives that change "
                "faster than the points are dense mislead",
                stacklevel=2,
            )

    @property
    def ratio(self) -> float | None:
        """Geometric mean over the last third of the validations; None before the first."""
        last = self.ratios[-max(1, round(len(self.ratios) / 3)) :]
        return math.exp(sum(map(math.log, last)) / len(last)) if last else None

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._twin, self._judge = None, None

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._twin, self._judge = None, None

    @override
    def state_dict(self) -> dict[str, Any]:
        twin = None if self._twin is None else self._twin.state_dict()
        return {"ratios": list(self.ratios), "twin": twin}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ratios, self._loaded = list(state_dict["ratios"]), state_dict["twin"]


def _check(trainer: Trainer, module: LightningModule) -> None:
    found = {
        "automatic optimization": module.automatic_optimization,
        "validation data": trainer.enable_validation,
        "one process": trainer.world_size == 1,
        "accumulate_grad_batches=1": trainer.accumulate_grad_batches == 1,
        "a precision without gradient scaler": str(trainer.precision) != "16-mixed",
    }
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        raise ValueError(f"HarmCheck needs {missing[0]}, without which no twin can follow")
