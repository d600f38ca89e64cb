"""Shadows of a LightningModule's methods while fit runs: one set for all its callbacks."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_sobolev.plugin.matching import StepPart
from lightning_sobolev.plugin.protect import explained, kept_gathered, sharded_parts
from lightning_sobolev.plugin.shadow import Passing, Shadow
from lightning_sobolev.plugin.step_log import key, log_step

if TYPE_CHECKING:
    from lightning_sobolev.plugin.callback import SobolevCallback

_SHADOWED = ("training_step", "manual_backward", "backward")


class ObservedStep:
    """Runs the user's step under observation and adds what the callbacks return."""

    def __init__(self, module: LightningModule) -> None:
        self.matchers: list[SobolevCallback] = []
        self._module = module
        self._earlier = {name: vars(module).get(name) for name in _SHADOWED}
        self._step: Callable[..., Any] = self._original("training_step")
        self._pending: list[StepPart] = []
        self._used: set[int] = set()
        self._totals: list[Tensor] = []
        self._batch: Any = None
        self._leaves: list[Tensor] = []
        self._sharded = bool(sharded_parts(module))

    def install(self) -> None:
        """Shadow the module's methods."""
        functions = (self.training_step, self.manual_backward, self.backward)
        for name, function in zip(_SHADOWED, functions, strict=True):
            vars(self._module)[name] = Shadow(self._module, name, function)
        vars(self._module)["_sobolev_step"] = Passing(held=self)

    def restore(self) -> None:
        """Give the module its methods back."""
        for name, method in self._earlier.items():
            vars(self._module).pop(name, None)
            if method is not None:
                vars(self._module)[name] = method
        vars(self._module).pop("_sobolev_step", None)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step; add the terms to its loss under automatic optimisation."""
        if not torch.is_grad_enabled():  # a validation step that asks for the training loss
            return self._step(*args, **kwargs)
        batch = self._batch = self._find_batch(args, kwargs)
        self._pending = [matcher.begin(self._module, batch) for matcher in self.matchers]
        self._used, self._totals = set(), []
        try:
            with ExitStack() as stack:
                for part in self._pending:
                    stack.enter_context(part.watching())
                output = self._with_terms(self._step(*args, **kwargs))
                if self._totals:
                    size = self._pending[0].observed[0][0].shape[0]
                    total = torch.stack(self._totals).sum()
                    log_step(self._module, key("train", "total"), total, size)
                return output
        finally:
            self._pending, self._batch = [], None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add each term to the first loss whose graph reaches its observed output."""
        for part in self._pending:
            if id(part) in self._used or not part.captured:
                continue
            if _reaches(loss, [y for _, y in part.observed]):
                loss = loss + self._loss_of(part, loss)
        self._original("manual_backward")(loss, *args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Leave out the gradient in the observed input: nobody reads it, and it is up to 28 %."""
        leaves, self._leaves = self._leaves, []
        # By name: pytorch_lightning has a LightningModule of its own.
        overridden = type(self._module).backward.__qualname__ != "LightningModule.backward"
        if leaves and not overridden and "inputs" not in kwargs:
            hidden = {id(leaf) for leaf in leaves}
            others = [v for v in _leaf_variables(loss) if id(v) not in hidden]
            kwargs.update({"inputs": others} if others else {})  # torch refuses an empty list
        gathered = kept_gathered(self._module, to_the_end=True) if self._sharded else nullcontext()
        with explained(), gathered:
            self._original("backward")(loss, *args, **kwargs)

    def _with_terms(self, output: Any) -> Any:
        if not self._module.automatic_optimization:
            unused = [part for part in self._pending if id(part) not in self._used]
            if any(part.observed for part in unused):
                raise ValueError(
                    "under manual optimization the term enters through self.manual_backward(loss) "
                    "with a loss that depends on the observed output, but training_step made no "
                    "such call; loss.backward() cannot be seen from outside"
                )
            return output
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            return output  # None skips the batch; anything else is Lightning's to refuse
        value_loss = loss
        for part in self._pending:
            loss = loss + self._loss_of(part, value_loss)
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _loss_of(self, part: StepPart, value_loss: Tensor) -> Tensor:
        self._used.add(id(part))
        value = part.loss(self._batch, value_loss)
        self._totals.append(value.detach())
        self._leaves += [x for x, _ in part.observed if x.is_leaf]
        return value

    def _find_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "dataloader_iter" in kwargs or (args and hasattr(args[0], "__next__")):
            return None
        return args[0] if args else kwargs.get("batch")

    def _original(self, name: str) -> Callable[..., Any]:
        method = self._earlier[name]
        if method is not None:
            return cast(Callable[..., Any], method)
        return MethodType(getattr(type(self._module), name), self._module)


def install(module: LightningModule, matcher: "SobolevCallback") -> None:
    """Let ``matcher`` take part in the module's training steps."""
    step = _step_of(module)
    if step is None:
        step = ObservedStep(module)
        step.install()
    taken = {key for other in step.matchers for key in other.term_keys}
    clash = sorted(taken.intersection(matcher.term_keys))
    if clash:
        raise ValueError(
            "the terms of several callbacks must be named differently (SobolevTerm(name=...)), "
            f"got {clash[0]!r} twice"
        )
    step.matchers.append(matcher)


def uninstall(module: LightningModule, matcher: "SobolevCallback") -> None:
    """Take ``matcher`` out; restore the module when it was the last one."""
    step = _step_of(module)
    if step is not None and matcher in step.matchers:
        step.matchers.remove(matcher)
        if not step.matchers:
            step.restore()


def _step_of(module: LightningModule) -> ObservedStep | None:
    return getattr(vars(module).get("_sobolev_step"), "held", None)


def _reaches(loss: Tensor, outputs: list[Tensor]) -> bool:
    wanted = {y.grad_fn for y in outputs if y.grad_fn is not None}
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        node = stack.pop()
        if node in wanted:
            return True
        new = {child for child, _ in node.next_functions} - seen if node is not None else set()
        seen |= new
        stack += new
    return False


def _leaf_variables(loss: Tensor) -> list[Tensor]:
    # Every node is visited at every step: no generator, no set of all nodes beforehand.
    stack, seen, found = [loss.grad_fn], {loss.grad_fn}, []
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            found.append(variable)
            continue
        for child, _ in node.next_functions:
            if child not in seen:
                seen.add(child)
                stack.append(child)
    return found
