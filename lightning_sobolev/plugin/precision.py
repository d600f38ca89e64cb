"""Derivatives in float32 where the step itself runs in half precision.

Note [half precision]
    A bfloat16 forward leaves the derivative three digits: close to its target the term trains on
    noise. float16 adds underflow: the loss scaler does not multiply the inner backward pass. The
    derivative therefore has a forward of its own, outside autocast, on float32 copies of half
    parameters; gradients reach the parameters through the copy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn
from lightning_sobolev.plugin.protect import sharded_parts

_HALF = (torch.float16, torch.bfloat16)


def runs_in_half(module: nn.Module, device: torch.device) -> bool:
    """Whether a call made here and now has fewer digits than float32, and could have them."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type) in _HALF
    return _is_half(module) and not sharded_parts(module)


def widened(module: nn.Module, tree: Any) -> Any:
    """Return ``tree`` with its half-precision tensors in float32, if the module can take them."""
    if _is_half(module) and sharded_parts(module):
        return tree
    return _paths.map_tensors(tree, lambda t: t.float() if t.dtype in _HALF else t)


def in_single(module: nn.Module) -> Callable[..., Any]:
    """Return a call in at least float32 outside autocast, see Note [half precision]."""
    state = {} if sharded_parts(module) else half_state(module)  # shards cannot be copied
    # Once: the gradients of several calls are summed before they are rounded.
    copies = {name: tensor.float() for name, tensor in state.items()}

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = widened(module, args), widened(module, kwargs)
        if not copies:
            return module(*args, **kwargs)
        with _default_dtype(torch.float32):  # half-precision trainers make it theirs
            return functional_call(module, copies, args, kwargs)

    return call


def mapped(on: BatchFn, y: Tensor, x: Tensor) -> Tensor:
    """Apply an output map in the precision of the input: autocast leaves outputs in half."""
    with torch.autocast(x.device.type, enabled=False):
        return on(y.to(torch.promote_types(y.dtype, x.dtype)))


def half_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's parameters and buffers in half precision by name."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor for name, tensor in named if tensor.dtype in _HALF}


def _is_half(module: nn.Module) -> bool:
    # At every step: no dictionary.
    return any(tensor.dtype in _HALF for tensor in chain(module.parameters(), module.buffers()))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
