"""Callables that stand in for methods of one object and leave no trace in its copies.

Objects and not closures: a copy of the module (EMA, SWA, the LR finder, the doctor) gets its own
methods bound to the COPY, and a pickled module carries nothing of ours.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any, cast

from torch import nn


class Shadow(functools.partial):
    """Stands in for a method; copies and pickles as what it stands in for.

    ``inner`` is what it stands in for. A partial, not a ``__call__``: at every step a frame less.
    """

    owner: nn.Module
    name: str
    inner: Callable[..., Any]
    earlier: Any
    is_own: bool

    def __new__(cls, owner: nn.Module, name: str, function: Callable[..., Any]) -> "Shadow":  # noqa: D102
        self = super().__new__(cls, function)
        # Lightning looks for parameter names such as batch_idx one step behind __wrapped__.
        original = inspect.unwrap(getattr(owner, name))
        functools.update_wrapper(self, original)
        self.owner, self.name, self.inner = owner, name, getattr(owner, name)
        self.earlier = vars(owner).get(name)
        # A compiled method is the class's own too; its copy is not compiled.
        is_class_method = getattr(original, "__func__", None) is getattr(type(owner), name)
        # Of a decorated method unwrap() finds the function inside: nobody else has put one here.
        self.is_own = self.earlier is None or is_class_method
        return self

    def put_on(self) -> "Shadow":
        """Take the method's place."""
        # vars() and not setattr: a compiled module passes attributes on to the original.
        vars(self.owner)[self.name] = self
        return self

    def take_off(self) -> None:
        """Give the method its place back, or one's own to the next, if others came on top."""
        present = vars(self.owner).get(self.name)
        if present is self:
            vars(self.owner).pop(self.name)
            if self.earlier is not None:
                vars(self.owner)[self.name] = self.earlier
        while isinstance(present, Shadow) and present is not self:
            if present.earlier is self:
                present.earlier, present.inner = self.earlier, self.inner
                present.is_own = present.is_own or self.is_own
            present = present.earlier

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if not self.is_own:
            return copy.deepcopy(self.earlier, memo)
        owner = copy.deepcopy(self.owner, memo)
        return MethodType(getattr(type(owner), self.name), owner)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if not self.is_own:
            return copy.copy, (self.earlier,)
        return getattr, (self.owner, self.name)


class Passing(functools.partial):
    """A hook, or a holder, that copies and pickles as one that does nothing."""

    held: Any = None

    # A method of the standard library that takes anything and does nothing: whoever loads such a
    # file need not have this package.
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return nullcontext().__exit__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (nullcontext(), "__exit__")


def holder(held: Any) -> Passing:
    """Return something for a module's ``vars()`` that no copy of it keeps."""
    found = Passing(id)
    found.held = held
    return found


@contextmanager
def bare(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take off what stands in for ``forward``, so that a compiler sees what the user wrote."""
    taken = []
    for module in modules:
        shadow = vars(module).pop("forward", None)
        hooks = [
            cast(dict[int, Any], h) for h in (module._forward_hooks, module._forward_pre_hooks)
        ]
        passing = [{k: h for k, h in kind.items() if isinstance(h, Passing)} for kind in hooks]
        for kind, own in zip(hooks, passing, strict=True):
            for key in own:
                del kind[key]
        taken.append((module, shadow, hooks, passing))
        while isinstance(shadow, Shadow):
            shadow = shadow.earlier
        if shadow is not None:
            vars(module)["forward"] = shadow
    try:
        yield
    finally:
        for module, shadow, hooks, passing in reversed(taken):
            vars(module).pop("forward", None)
            if shadow is not None:
                vars(module)["forward"] = shadow
            for kind, own in zip(hooks, passing, strict=True):
                kind.update(own)
