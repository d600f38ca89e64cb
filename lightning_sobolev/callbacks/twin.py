"""A copy of a module that is trained on its own loss alone, beside it."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class Silent:
    """A copy of a module whose loss can be read without a trace in anybody's log."""

    def __init__(self, module: LightningModule, trainer: Trainer) -> None:
        self.module = copy.deepcopy(module)
        self.module._trainer = trainer
        for name in ("log", "log_dict"):
            vars(self.module)[name] = lambda *_, **__: None
        self._trainer = trainer
        parameters = inspect.signature(self.module.training_step).parameters
        self._takes_index = "batch_idx" in parameters or len(parameters) > 1

    def loss(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the module's own loss on a batch; None where the step skips it."""
        arguments = (batch, batch_idx) if self._takes_index else (batch,)
        with self._trainer.precision_plugin.train_step_context():
            output = self.module.training_step(*arguments)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        return loss if isinstance(loss, Tensor) else None


class Twin(Silent):
    """Makes the updates that the module would have made without derivative terms."""

    def __init__(self, module: LightningModule, trainer: Trainer) -> None:
        super().__init__(module, trainer)
        self.module.train()
        self.optimizer = _only_optimizer(self.module.configure_optimizers())

    def step(self, batch: Any, batch_idx: int, *, like: Optimizer) -> None:
        """Make one update on a batch, with the learning rates that another optimizer has now."""
        for own, other in zip(self.optimizer.param_groups, like.param_groups, strict=True):
            own["lr"] = other["lr"]
        devices = [self.module.device] if self.module.device.type == "cuda" else []
        # Its dropout must not shift the random numbers of the run it is compared with.
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            loss = self.loss(batch, batch_idx)
            if loss is None:
                return
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self._clip()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizer state."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` said."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _clip(self) -> None:
        most = self._trainer.gradient_clip_val
        if most is None:
            return
        parameters = list(self.module.parameters())
        if self._trainer.gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, float(most))
        else:
            torch.nn.utils.clip_grad_norm_(parameters, float(most))


def _only_optimizer(configured: Any) -> Optimizer:
    found = configured
    if isinstance(found, Mapping):
        found = found["optimizer"]
    while isinstance(found, list | tuple) and found and not isinstance(found[0], Mapping):
        several = len(found) > 1 and isinstance(found[1], Optimizer)
        found = None if several else found[0]
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]["optimizer"]
    if not isinstance(found, Optimizer):
        raise ValueError(f"HarmCheck needs a module with one optimizer, got {configured!r}")
    return found
