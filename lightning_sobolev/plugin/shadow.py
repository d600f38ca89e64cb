"""Callables that stand in for methods of one object and leave no trace in its copies.

Objects and not closures: a copy of the module (EMA, SWA, the LR finder, the doctor) gets its own
methods bound to the COPY, and a pickled module carries nothing of ours.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn


class Shadow:
    """Stands in for a method; copies and pickles as what it stands in for."""

    def __init__(self, owner: nn.Module, name: str, function: Callable[..., Any]) -> None:
        # Lightning looks for parameter names such as batch_idx one step behind __wrapped__.
        original = inspect.unwrap(getattr(owner, name))
        functools.update_wrapper(self, original)
        self._owner, self._name, self._function = owner, name, function
        self._earlier = vars(owner).get(name)
        # A compiled method is the class's own too; its copy is not compiled.
        is_class_method = getattr(original, "__func__", None) is getattr(type(owner), name)
        # Of a decorated method unwrap() finds the function inside: nobody else has put one here.
        self._is_own = self._earlier is None or is_class_method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if not self._is_own:
            return copy.deepcopy(self._earlier, memo)
        owner = copy.deepcopy(self._owner, memo)
        return MethodType(getattr(type(owner), self._name), owner)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if not self._is_own:
            return _same, (self._earlier,)
        return getattr, (self._owner, self._name)


class Passing:
    """A forward hook, or a holder, that copies and pickles as one that does nothing."""

    def __init__(self, function: Callable[..., None] | None = None, held: Any = None) -> None:
        self._function, self.held = function, held

    def __call__(self, *args: Any) -> None:  # noqa: D102
        if self._function is not None:
            self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Passing":
        return Passing()

    def __reduce__(self) -> tuple[type["Passing"], tuple[()]]:
        return Passing, ()


@contextmanager
def bare(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take off what stands in for ``forward``, so that a compiler sees what the user wrote."""
    taken = []
    for module in modules:
        shadow, hooks = vars(module).pop("forward", None), module._forward_hooks
        passing = {key: hook for key, hook in hooks.items() if isinstance(hook, Passing)}
        for key in passing:
            del hooks[key]
        taken.append((module, shadow, passing))
        while isinstance(shadow, Shadow):
            shadow = shadow._earlier
        if shadow is not None:
            vars(module)["forward"] = shadow
    try:
        yield
    finally:
        for module, shadow, passing in reversed(taken):
            vars(module).pop("forward", None)
            if shadow is not None:
                vars(module)["forward"] = shadow
            module._forward_hooks.update(passing)


def _same(value: Any) -> Any:
    return value
