"""Remedies for layers whose double backward is missing or silently wrong.

Note [fused kernels]
    Measured on torch 2.13: flash and memory-efficient attention and cuDNN's recurrent kernels have
    no second derivative and raise. The fused layer, instance and train-mode batch norms save their
    statistics without a graph (pytorch #175754, #186256, #196700): under forward mode and at
    order 2 the derivative itself is right and its gradient in the PARAMETERS is wrong, in silence.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.overrides import TorchFunctionMode


class Remedies:
    """What the observed forward, its replay and the backward pass run under; nothing else does.

    Args:
        exact_norms: Whether norms are written out: for tangents and order 2.
        recurrent: Whether cuDNN is off.
        compiled: Whether compiled parts run eager: aot_autograd has no double backward.
    """

    def __init__(
        self, *, exact_norms: bool = False, recurrent: bool = False, compiled: bool = False
    ) -> None:
        self.recomputing: Remedies = self
        """The same for backward passes, where a checkpoint computes activations again."""
        self._makers: list[Callable[[], Any]] = []
        if compiled:
            self._makers.append(partial(torch.compiler.set_stance, "force_eager"))
        if recurrent:
            self._makers.append(partial(torch.backends.cudnn.flags, enabled=False))
        if exact_norms:
            self.recomputing = Remedies(recurrent=recurrent, compiled=compiled)
            self.recomputing._makers.append(_norms_replaced)
            self._makers.append(ExactNorms)
        self._open: list[tuple[ExitStack | None, tuple[bool, ...]]] = []

    def __enter__(self) -> None:
        stack = None
        if self._makers:
            stack = ExitStack()
            for make in self._makers:
                stack.enter_context(make())
        # At every step: the flags themselves, not torch's context manager, which takes ten times
        # as long. Recomputed activations of a checkpoint ask for them in the backward pass.
        cuda: Any = torch.backends.cuda
        before = (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        )
        self._open.append((stack, (*before, cuda.math_sdp_enabled())))
        cuda.enable_flash_sdp(False)
        cuda.enable_mem_efficient_sdp(False)
        cuda.enable_cudnn_sdp(False)
        cuda.enable_math_sdp(True)

    def __exit__(self, *error: Any) -> None:
        stack, before = self._open.pop()
        cuda: Any = torch.backends.cuda
        cuda.enable_flash_sdp(before[0])
        cuda.enable_mem_efficient_sdp(before[1])
        cuda.enable_cudnn_sdp(before[2])
        cuda.enable_math_sdp(before[3])
        if stack is not None:
            stack.__exit__(*error)


class Both:
    """Two remedies, one inside of the other."""

    def __init__(self, outer: Any, inner: Any) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)


class ExactNorms(TorchFunctionMode):
    """Replaces fused norms by mean and variance written out, also in ``torch.nn.functional``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        return _WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


# Torch's own, not those of F, which call torch's by a name that may stand for ours.
_FUSED_BATCH_NORM, _FUSED_INSTANCE_NORM = torch.batch_norm, torch.instance_norm


@contextmanager
def _norms_replaced() -> Iterator[None]:
    # A mode of torch functions is off inside torch.autograd.grad, which is one itself: here the
    # names stand for the written-out norms.
    places = [(F, n) for n in ("layer_norm", "batch_norm", "instance_norm")]
    places += [
        (torch, n) for n in ("layer_norm", "native_layer_norm", "batch_norm", "instance_norm")
    ]
    fused = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, function in fused:
        setattr(owner, name, _WRITTEN_OUT.get(function, function))
    try:
        yield
    finally:
        for owner, name, function in fused:
            setattr(owner, name, function)


def _standardize(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    # As the fused norms do: statistics of half-precision inputs are taken in float32.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(dims, keepdim=True)
    centered = wide - mean
    variance = centered.square().mean(dims, keepdim=True)
    return (centered * torch.rsqrt(variance + eps)).to(x.dtype), mean, variance


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    scaled = x if weight is None else x * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


# Names and defaults are torch's: callers may use them as keywords.
def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int],
    weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    del cudnn_enable
    x, _, _ = _standardize(input, list(range(-len(normalized_shape), 0)), eps)
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _track(running: Tensor | None, batch: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.mul_(1.0 - momentum).add_(momentum * batch.detach().reshape(-1))


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not training:
        cudnn = torch.backends.cudnn.enabled
        return _FUSED_BATCH_NORM(
            input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn
        )
    dims = [0, *range(2, input.ndim)]
    x, mean, variance = _standardize(input, dims, eps)
    count = input.numel() // input.shape[1]
    _track(running_mean, mean, momentum)
    _track(running_var, variance * (count / max(count - 1, 1)), momentum)
    return _per_channel(x, weight, bias)


def _instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        cudnn = torch.backends.cudnn.enabled
        return _FUSED_INSTANCE_NORM(
            input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn
        )
    dims = list(range(2, input.ndim))
    x, mean, variance = _standardize(input, dims, eps)
    count = input[0, 0].numel()
    _track(running_mean, mean.mean(0), momentum)
    _track(running_var, variance.mean(0) * (count / max(count - 1, 1)), momentum)
    return _per_channel(x, weight, bias)


def _native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int],
    weight: Tensor | None, bias: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _, mean, variance = _standardize(input, list(range(-len(normalized_shape), 0)), eps)
    y = _layer_norm(input, normalized_shape, weight, bias, eps)
    return y, mean, torch.rsqrt(variance + eps)


def _weights_first(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Torch's own functions take their arguments in another order than F's.
    def reordered(
        input: Tensor, weight: Tensor | None, bias: Tensor | None,
        running_mean: Tensor | None, running_var: Tensor | None,
        *rest: Any, cudnn_enabled: bool = True,
    ) -> Tensor:  # fmt: skip
        del cudnn_enabled
        return norm(input, running_mean, running_var, weight, bias, *rest[:3])

    return reordered


_WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.layer_norm: _layer_norm,
    torch.native_layer_norm: _native_layer_norm,
    torch.batch_norm: _weights_first(_batch_norm),
    torch.instance_norm: _weights_first(_instance_norm),
}


_HINTS = {
    "use_reentrant": "activation checkpointing inside the observed module must use "
    "use_reentrant=False",
    "does not currently support double backward": (
        "a compiled part of the step cannot be differentiated twice; call it through the trained "
        "module so that it can run eager, or leave it uncompiled"
    ),
    "donated buffers": (
        "a compiled function inside the student cannot be differentiated twice; leave it "
        "uncompiled, or compile the module instead, which then runs eager"
    ),
    "saved tensor hooks": "activation checkpointing works with engine='tape' only",
    "torch.utils.checkpoint": "activation checkpointing works with engine='tape' and "
    "use_reentrant=False only",
    "override the setup_context": "this autograd.Function works with engine='tape' only",
    "would mutate a captured Tensor": "batch norm in train mode works with engine='tape' only",
    "Autograd not support dtype": "this layer (an EmbeddingBag?) works with engine='tape' only",
    "attempting to call Tensor.requires_grad_": (
        "a student that differentiates inside (forces) works with engine='tape' only"
    ),
    "forward AD": "this layer has no forward mode; use engine='tape'",
    "mkldnn_rnn_layer": "this layer has no forward mode; use engine='tape'",
    "derivative for ": "this operation has no second derivative",
    "modified by an inplace operation": (
        "something is written in place that a second derivative needs; leave inplace=True and "
        "its kin out of the student"
    ),
}


def explain(error: BaseException) -> None:
    """Add a note to one of torch's errors that a derivative of higher order meets."""
    hint = next((hint for text, hint in _HINTS.items() if text in str(error)), None)
    note = None if hint is None else f"lightning_sobolev: {hint}"
    if note is not None and note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def has_recurrent(module: nn.Module) -> bool:
    """Whether a recurrent layer is among the module's parts."""
    return any(isinstance(part, nn.RNNBase) for part in module.modules())


def sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """Find the parts of ``module`` that ``fully_shard`` has sharded, whether gathered or not."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def kept_gathered(module: nn.Module, *, to_the_end: bool = False) -> Iterator[None]:
    """Keep FSDP2 parameters gathered through a backward pass: the outer one needs them, too."""
    for part in sharded_parts(module):
        part.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for part in sharded_parts(module):
            part.set_reshard_after_backward(True, recurse=False)
            if to_the_end:  # else the next forward would use them as they were before the update
                part.reshard()


def is_compiled(module: nn.Module) -> bool:
    """Whether the module or one below it was compiled."""
    return getattr(module, "_compiler_ctx", None) is not None or any(
        hasattr(part, "_orig_mod") or part._compiled_call_impl is not None
        for part in module.modules()
    )


def is_entered_compiled(module: nn.Module) -> bool:
    """Whether frames are compiled before any forward is called: in place, or as a whole."""
    return getattr(module, "_compiler_ctx", None) is not None or any(
        part._compiled_call_impl is not None for part in module.modules()
    )
