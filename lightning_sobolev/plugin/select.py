"""Find the observed input among a call's arguments and the matched tensor in its result."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_sobolev import _paths

Inputs = dict[str, Any]
"""``{"args": tuple, "kwargs": dict}`` of one call."""


def locate(wrt: str | int | None, forward: Callable[..., Any], inputs: Inputs) -> _paths.Path:
    """Find the input with respect to which is differentiated.

    Args:
        wrt: None for the first floating-point tensor; a position; the name of a parameter of
            ``forward``, or a key of its first argument; or a key path that begins so.
        forward: What is called, for the names of its parameters.
        inputs: Arguments of the call.

    Returns:
        The path of a floating-point tensor in ``inputs``.

    Raises:
        ValueError: If there is no such tensor.
    """
    path = () if wrt is None else _resolve(wrt, forward, inputs)
    chosen = _paths.get(inputs, path, f"wrt={wrt!r}")
    inner = _paths.first_float(chosen)
    if inner is None:
        got = "; ".join(_paths.describe(arg) for arg in inputs["args"]) or _paths.describe(inputs)
        raise ValueError(
            f"wrt={wrt!r}: the observed module must get a floating-point tensor to differentiate "
            f"with respect to, got {got if wrt is None else _paths.describe(chosen)}; for integer "
            "inputs name the submodule behind the embedding with module="
        )
    return (*path, *inner)


def select_output(result: Any, output: str | int | None) -> Tensor:
    """Pick the matched tensor from what the observed module returned.

    Args:
        result: The module's result: a tensor, or a tuple or dict that holds one.
        output: Key path, or None for the first floating-point tensor.

    Returns:
        The tensor.

    Raises:
        ValueError: If there is no real floating-point tensor at that place.
    """
    path = _paths.first_float(result) if output is None else _paths.parse(output)
    chosen = None if path is None else _paths.get(result, path, f"output={output!r}")
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        got = _paths.describe(result if chosen is None else chosen)
        raise ValueError(
            f"output={output!r}: the observed module must return a real floating-point tensor "
            f"there to have a derivative, got {got}"
        )
    return chosen


def _resolve(wrt: str | int, forward: Callable[..., Any], inputs: Inputs) -> _paths.Path:
    head, *rest = _paths.parse(wrt)
    if isinstance(head, int):
        return ("args", head, *rest)
    if head in inputs["kwargs"]:
        return ("kwargs", head, *rest)
    names = list(inspect.signature(forward).parameters)
    if head in names and names.index(head) < len(inputs["args"]):
        return ("args", names.index(head), *rest)
    if inputs["args"] and not isinstance(inputs["args"][0], Tensor):
        return ("args", 0, head, *rest)
    raise ValueError(f"wrt={wrt!r}: the observed module has no such argument, got {names}")
