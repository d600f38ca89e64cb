r"""Floating-point operations of a step: counted, by formula, and the fewest that do the work.

Write F for the operations of one forward pass through all layers that multiply matrices and f for
those of the first (last) one. A backward pass computes gradients in weights (F) and in inputs (F,
or :math:`F - f_1` if nobody asks for the network's own). With a second backward pass through
:math:`u^\top J` the student needs, beside the plain step's :math:`3F - f_1`,

- F for :math:`u^\top J` itself,
- F for its gradient in the weights and F for that in the cotangents of the layers, less
  :math:`f_{last}` if the output map is linear, whose cotangent is then the constant u,

and the teacher needs 2F. The whole is :math:`8F - f_1` where plain distillation is
:math:`4F - f_1`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


def counted(step: Callable[[], None]) -> int:
    """Count the operations that ``step`` does, by torch's own counter.

    Args:
        step: Any function; what it compiles is not seen.

    Returns:
        Their number; a multiplication and an addition are two.
    """
    counter = FlopCounterMode(display=False)
    # Its hooks on modules refuse autograd.grad; which module an operation belongs to is not asked.
    counter.mod_tracker = _NoModules()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # a whole encoder layer in one uncounted operation
    try:
        with counter:
            step()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


class _NoModules(ModuleTracker):
    """Says that everything happens outside of modules."""

    def __enter__(self) -> "_NoModules":
        self.parents = {"Global"}
        return self

    def __exit__(self, *args: object) -> None:
        pass


def layer_flops(network: nn.Module, x: Tensor) -> list[int]:
    """Return the operations of every linear and convolutional layer in one forward pass.

    A multiplication and an addition are two operations. Layers come in the order of their calls.

    Args:
        network: Made of linear and two-dimensional convolutional layers without groups.
        x: A batch.
    """
    found: list[int] = []

    def note(layer: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        del args
        weight = layer.weight
        assert isinstance(weight, Tensor)
        places = y.numel() // weight.shape[0]  # batch, and pixels of a convolution
        found.append(2 * places * weight.numel())

    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def by_formula(layers: list[int], *, linear_output: bool) -> dict[str, int]:
    """Return the operations of a step by the formulas at the top of this file.

    Args:
        layers: Of every layer, from :func:`layer_flops`.
        linear_output: Whether the output map is linear.

    Returns:
        For plain training, plain distillation and one projection on all rows.
    """
    forward, first = sum(layers), layers[0]
    plain = 3 * forward - first
    twice = 3 * forward - (layers[-1] if linear_output else 0)
    distillation = plain + forward
    return {
        "plain": plain,
        "distillation": distillation,
        "derivative": distillation + forward + twice,
    }


def limits(
    plain: int, distillation: int, derivative: int, *, rows: float = 0.25
) -> Mapping[str, float]:
    """Return the fewest operations for each objective.

    Args:
        plain: Counted operations of plain training.
        distillation: The same with the teacher's forward pass.
        derivative: Those of the best step written by hand, which does nothing twice.
        rows: Share of the batch of the objective ``rows``.

    Returns:
        By objective. A cached teacher does away with its forward and its backward pass, which
        cost the same.
    """
    teacher = distillation - plain
    return {
        "plain": plain,
        "distillation": distillation,
        "derivative": derivative,
        "rows": distillation + rows * (derivative - distillation),
        "cached": derivative - 2 * teacher,
    }
