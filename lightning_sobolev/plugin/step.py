"""Shadows of a LightningModule's methods while fit runs.

One :class:`ObservedStep` per module serves all callbacks; the last one to leave restores the
module. The shadows are objects and not closures: a copy of the module (EMA, SWA, the LR finder)
gets its class's own methods bound to the COPY, and a pickled module carries no trace of us.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import MethodType
from typing import Any, Protocol, cast

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.autograd.graph import Node

_SHADOWED = ("training_step", "manual_backward", "backward")


class Part(Protocol):
    """One callback's part in one training step."""

    @property
    def captured(self) -> bool:
        """Whether anything has been observed so far."""
        ...

    @property
    def observed(self) -> list[tuple[Tensor, Tensor]]:
        """(x, y) of the observations that count."""
        ...

    def watching(self) -> AbstractContextManager[None]:
        """Surround the user's step."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Return the weighted sum of the terms; logs them."""
        ...


class Matcher(Protocol):
    """A callback that takes part in training steps."""

    def begin(self, module: LightningModule) -> Part:
        """Begin its part in one step."""
        ...


class Shadow:
    """A callable in place of a method of ``owner``; copies and pickles as the method itself."""

    def __init__(self, owner: LightningModule, name: str, function: Callable[..., Any]) -> None:
        # Lightning looks for parameter names such as batch_idx behind __wrapped__.
        functools.update_wrapper(self, getattr(type(owner), name))
        self._owner, self._name, self._function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        owner = copy.deepcopy(self._owner, memo)
        return MethodType(getattr(type(owner), self._name), owner)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[LightningModule, str]]:
        return getattr, (self._owner, self._name)


class ObservedStep:
    """Runs the user's step under observation and adds what the callbacks return.

    Args:
        module: The module whose methods are shadowed.
    """

    def __init__(self, module: LightningModule) -> None:
        self.matchers: list[Matcher] = []
        self._module = module
        self._earlier = {name: vars(module).get(name) for name in _SHADOWED}
        self._step: Callable[..., Any] = self._original("training_step")
        self._pending: list[Part] = []
        self._used: set[int] = set()
        self._batch: Any = None
        self._leaves: list[Tensor] = []

    def install(self) -> None:
        """Shadow the module's methods."""
        functions = (self.training_step, self.manual_backward, self.backward)
        for name, function in zip(_SHADOWED, functions, strict=True):
            vars(self._module)[name] = Shadow(self._module, name, function)
        vars(self._module)["_sobolev_step"] = _Hidden(self)

    def restore(self) -> None:
        """Give the module its methods back."""
        for name, method in self._earlier.items():
            vars(self._module).pop(name, None)
            if method is not None:
                vars(self._module)[name] = method
        vars(self._module).pop("_sobolev_step", None)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step; add the terms to its loss under automatic optimisation."""
        self._pending = [matcher.begin(self._module) for matcher in self.matchers]
        self._used = set()
        self._batch = self._find_batch(args, kwargs)
        try:
            with ExitStack() as stack:
                for part in self._pending:
                    stack.enter_context(part.watching())
                output = self._step(*args, **kwargs)
                return self._with_terms(output)
        finally:
            self._pending, self._batch = [], None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add each term to the first loss whose graph reaches its observed output."""
        for part in self._pending:
            if id(part) in self._used or not part.captured:
                continue
            outputs = [y for _, y in part.observed]
            if _reaches(loss, outputs):
                loss = loss + self._loss_of(part)
        self._original("manual_backward")(loss, *args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Leave out the gradient with respect to the observed input: nobody reads it.

        On convolutional students this is 14 to 28 % of a step (measured).
        """
        leaves, self._leaves = self._leaves, []
        overridden = type(self._module).backward is not LightningModule.backward
        if leaves and not overridden and "inputs" not in kwargs:
            hidden = {id(leaf) for leaf in leaves}
            kwargs["inputs"] = [v for v in _leaf_variables(loss) if id(v) not in hidden]
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
        for part in self._pending:
            loss = loss + self._loss_of(part)
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _loss_of(self, part: Part) -> Tensor:
        self._used.add(id(part))
        value = part.loss(self._batch)
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


class _Hidden:
    """Holds the step on the module; copies and pickles as nothing."""

    def __init__(self, step: ObservedStep | None) -> None:
        self.step = step

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hidden":
        return _Hidden(None)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[None]]:
        return _Hidden, (None,)


def install(module: LightningModule, matcher: Matcher) -> None:
    """Let ``matcher`` take part in the module's training steps."""
    held = vars(module).get("_sobolev_step")
    step = held.step if held is not None else None
    if step is None:
        step = ObservedStep(module)
        step.install()
    step.matchers.append(matcher)


def uninstall(module: LightningModule, matcher: Matcher) -> None:
    """Take ``matcher`` out; restore the module when it was the last one."""
    held = vars(module).get("_sobolev_step")
    if held is None or held.step is None or matcher not in held.step.matchers:
        return
    held.step.matchers.remove(matcher)
    if not held.step.matchers:
        held.step.restore()


def _nodes(start: Iterable[Node | None]) -> Iterable[Node]:
    stack = [node for node in start if node is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


def _reaches(loss: Tensor, outputs: list[Tensor]) -> bool:
    wanted = {y.grad_fn for y in outputs if y.grad_fn is not None}
    return any(node in wanted for node in _nodes([loss.grad_fn]))


def _leaf_variables(loss: Tensor) -> list[Tensor]:
    variables = (getattr(node, "variable", None) for node in _nodes([loss.grad_fn]))
    return [variable for variable in variables if variable is not None]
