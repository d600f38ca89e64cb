"""Shadows of a LightningModule's methods while fit runs: one set for all its callbacks.

Note [cost of a logged number]
    ``self.log`` takes a fifth of a small network's step for three numbers (measured). Here it runs
    for the first batch of an epoch; afterwards its metric takes the value directly.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_sobolev.loss.report import Report
from lightning_sobolev.observe.graph import inputs_but
from lightning_sobolev.observe.remedies import Both, explain, kept_gathered, sharded_parts
from lightning_sobolev.observe.shadow import Shadow, holder

if TYPE_CHECKING:
    from lightning_sobolev.plugin.callback import SobolevCallback

LARGE = 2**15
"""Elements of an observed input from which on its gradient, which nobody reads, is left out of the
backward pass: up to 28 % of a step; below, walking the graph for it costs more than it saves."""


_AS_IT_IS = nullcontext()
_HOOK = "training_step"
_SHADOWED = ("training_step", "manual_backward", "backward", "validation_step", "test_step")


class ObservedStep:
    """Runs the user's step under observation and adds what the callbacks return."""

    def __init__(self, module: LightningModule, trainer: Trainer) -> None:
        self.callbacks: list[SobolevCallback] = []
        self._module, self._trainer = module, trainer
        self._earlier = {name: vars(module).get(name) for name in _SHADOWED}
        self._step: Callable[..., Any] = self._original("training_step")
        self._backward: Callable[..., Any] = self._original("backward")
        self._remedies: Any = _AS_IT_IS
        self._is_eager = False
        self._leaves: list[Tensor] = []
        self._total: tuple[Tensor, int] | None = None
        self._is_sharded = bool(sharded_parts(module))
        # By name: pytorch_lightning has a LightningModule of its own.
        self._may_leave_out = type(module).backward.__qualname__ == "LightningModule.backward"

    def install(self) -> None:
        """Shadow the module's methods."""
        for name in ("training_step", "manual_backward", "backward"):
            Shadow(self._module, name, getattr(self, name)).put_on()
        vars(self._module)["_sobolev_step"] = holder(self)

    def take_part(self, callback: "SobolevCallback") -> None:
        """Let one more callback take part."""
        self.callbacks.append(callback)
        plan = callback.plan
        plan.recorder.install()
        remedies = plan.recorder.replay_options.remedies.recomputing
        self._remedies = remedies if self._remedies is _AS_IT_IS else Both(self._remedies, remedies)
        self._is_eager |= plan.eager_step
        for name in ("validation_step", "test_step") if callback.options.validate else ():
            if not isinstance(vars(self._module).get(name), Shadow):
                Shadow(self._module, name, getattr(self, name)).put_on()

    def restore(self) -> None:
        """Give the module its methods back."""
        for name, method in self._earlier.items():
            vars(self._module).pop(name, None)
            if method is not None:
                vars(self._module)[name] = method
        vars(self._module).pop("_sobolev_step", None)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step; add the terms to its loss under automatic optimization."""
        # A validation step may ask for the training loss, with gradients or without.
        if not torch.is_grad_enabled() or not self._trainer.training:
            return self._step(*args, **kwargs)
        batch = args[0] if args else kwargs.get("batch")
        if "dataloader_iter" in kwargs or hasattr(type(batch), "__next__"):
            batch = None
        for callback in self.callbacks:
            callback.begin(batch)
        try:
            with torch.compiler.set_stance("force_eager") if self._is_eager else _AS_IT_IS:
                output = self._step(*args, **kwargs)
            if self._module.automatic_optimization:
                return self._with_terms(output)
            for callback in self.callbacks:
                callback.end_manual()
            return output
        except RuntimeError as error:
            explain(error)
            raise
        finally:
            for callback in self.callbacks:
                callback.plan.recorder.forget()

    def _with_terms(self, output: Any) -> Any:
        value_loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(value_loss, Tensor):
            return output  # None skips the batch; anything else is Lightning's to refuse
        loss = value_loss
        for callback in self.callbacks:  # what a loss or a doctor calls is nobody's step
            callback.plan.recorder.stop()
        for callback in self.callbacks:
            report = callback.automatic_terms(value_loss)
            if report is not None:
                loss = loss + report.loss
                self._take_in(report, report.loss)
        if self._total is not None:
            log_step(self._module, "train/sobolev/total", *self._total)
            self._total = None
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _take_in(self, report: Report, added: Tensor) -> None:
        self._leaves += report.leaves
        for key, value in report.terms.items():
            log_step(self._module, f"train/sobolev/{key}", value.detach(), report.size)
        total, before = added.detach(), self._total
        self._total = (total if before is None else total + before[0], report.size)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the terms of those observed calls that the loss was computed from."""
        value_loss = loss
        callbacks = self.callbacks if self._trainer.training else []
        for callback in callbacks:
            callback.plan.recorder.stop()
        for callback in callbacks:
            report = callback.manual_terms(value_loss)
            if report is not None:
                added = callback.options.manual_scale * report.loss
                loss = loss + added
                self._take_in(report, added)
        for callback in callbacks:
            callback.plan.recorder.resume()
        if self._total is not None:
            log_step(self._module, "train/sobolev/total", *self._total)
            self._total = None
        # What the second derivative computes must not be cast by the step's own autocast.
        with torch.autocast(loss.device.type, enabled=False):
            self._original("manual_backward")(loss, *args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass under the remedies, and see that its gradients are numbers."""
        leaves, self._leaves = self._leaves, []
        is_large = sum(map(Tensor.numel, leaves)) >= LARGE
        if is_large and self._may_leave_out and "inputs" not in kwargs:
            kwargs.update(inputs_but(loss, leaves))
        gathered = kept_gathered(self._module, to_the_end=True) if self._is_sharded else _AS_IT_IS
        with self._remedies, gathered:
            try:
                self._backward(loss, *args, **kwargs)
            except RuntimeError as error:
                explain(error)
                raise
        for callback in self.callbacks:
            callback.end_backward(loss, leaves)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step; log the terms at its call of the student."""
        return self._validated("validation_step", "val", args, kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step; log the terms at its call of the student."""
        return self._validated("test_step", "test", args, kwargs)

    def _validated(self, name: str, stage: str, args: tuple[Any, ...], kwargs: Any) -> Any:
        validating = [callback for callback in self.callbacks if callback.options.validate]
        batch = args[0] if args else kwargs.get("batch")
        for callback in validating:
            callback.plan.recorder.batch = batch
            callback.plan.recorder.start(without_gradients=True)
        try:
            output = self._original(name)(*args, **kwargs)
            number = int(args[1] if len(args) > 1 else kwargs.get("batch_idx", 0))
            for callback in validating:
                callback.plan.recorder.stop()
            for callback in validating:
                callback.validate(stage, batch, number)
            return output
        finally:
            for callback in validating:
                callback.plan.recorder.stop()

    def _original(self, name: str) -> Callable[..., Any]:
        method = self._earlier[name]
        if method is not None:
            return cast(Callable[..., Any], method)
        return MethodType(getattr(type(self._module), name), self._module)


def install(module: LightningModule, trainer: Trainer, callback: "SobolevCallback") -> None:
    """Let ``callback`` take part in the module's steps."""
    step = _step_of(module)
    if step is None:
        step = ObservedStep(module, trainer)
        step.install()
    taken = {key for other in step.callbacks for key in other.loss.term_keys}
    clash = sorted(taken.intersection(callback.loss.term_keys))
    if clash:
        raise ValueError(
            "the terms of several callbacks must be named differently (SobolevTerm(name=...)), "
            f"got {clash[0]!r} twice"
        )
    step.take_part(callback)


def uninstall(module: LightningModule, callback: "SobolevCallback") -> None:
    """Take ``callback`` out; restore the module when it was the last one."""
    step = _step_of(module)
    if step is not None and callback in step.callbacks:
        callback.plan.recorder.remove()
        step.callbacks.remove(callback)
        if not step.callbacks:
            step.restore()


def _step_of(module: LightningModule) -> ObservedStep | None:
    return getattr(vars(module).get("_sobolev_step"), "held", None)


def log_step(module: LightningModule, name: str, value: Tensor, batch_size: int) -> None:
    """Log a scalar of a training step, as ``module.log(name, value, batch_size=...)`` does."""
    trainer: Any = module._trainer
    results: Any = getattr(trainer, "_results", None)
    metric = results.get(f"{_HOOK}.{name}") if isinstance(results, dict) else None
    # What is not as expected, in some other release of Lightning, takes the documented way.
    meta = getattr(metric, "meta", None)
    is_later = type(module).log is LightningModule.log and trainer.fit_loop.epoch_loop.batch_idx
    if meta is None or not is_later or not meta.on_step or meta.on_epoch:
        module.log(name, value, batch_size=batch_size)
    else:  # the last value is all that is kept of it
        vars(metric).update(value=value, _forward_cache=value, has_reset=False)
