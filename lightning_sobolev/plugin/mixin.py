"""Sobolev terms for people who write the model."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from lightning_sobolev.plugin.callback import SobolevCallback


class SobolevMixin:
    """Gives a LightningModule its own Sobolev terms: put it BEFORE LightningModule.

    The mixin brings the same callback that a Trainer would take, through
    ``configure_callbacks``; there is no second mechanism. It does not matter whether the class
    writes its own ``training_step`` or inherits one.

    Example:
        >>> import torch, lightning.pytorch as L
        >>> class Student(SobolevMixin, L.LightningModule):
        ...     def configure_sobolev(self):
        ...         return SobolevCallback(teacher=torch.nn.Linear(2, 1), module="net")

    Raises:
        TypeError: If a class lists the mixin after LightningModule, where it would be passed over.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # By name: pytorch_lightning has a LightningModule of its own.
        order = [kind.__name__ for kind in cls.__mro__[1:]]
        if "LightningModule" in order[: order.index("SobolevMixin")]:
            raise TypeError(
                f"{cls.__name__} must list SobolevMixin before LightningModule, got the reverse: "
                "its callbacks would be passed over in silence"
            )

    def configure_sobolev(self) -> SobolevCallback:
        """Return the callback that this module brings to its trainer; override this."""
        raise TypeError(f"{type(self).__name__} must define configure_sobolev()")

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add the Sobolev callback to those of the class."""
        others = super().configure_callbacks()  # type: ignore[misc]
        others = list(others) if isinstance(others, Sequence) else [others]
        return [*others, self.configure_sobolev()]

    def on_fit_start(self) -> None:
        """Check that no override of ``configure_callbacks`` lost the callback."""
        super().on_fit_start()  # type: ignore[misc]
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, SobolevCallback) for callback in callbacks):
            raise ValueError(
                f"{type(self).__name__}.configure_callbacks must extend "
                "super().configure_callbacks(), got a list without the Sobolev callback"
            )
