"""Any network as a policy over stacks with pixels in 0..1."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev import _paths


class ModulePolicy(nn.Module):
    r"""A module :math:`g` that somebody wrote for other inputs: :math:`x \mapsto g(s\,x)`.

    Derivatives are with respect to x in 0..1, whatever :math:`g` was trained on. The factor is part
    of the state: a recording made with another one is not mistaken for this one's.

    Args:
        module: Maps ``[batch, stack, height, width]`` to logits ``[batch, actions]``; of a tuple or
            mapping that it returns, the first floating-point tensor is taken.
        input_scale: Factor :math:`s`: 1 where the module takes pixels in 0..1, 255 where it takes
            0..255, also if it then divides by 255 itself.

    Raises:
        ValueError: If ``module`` is not a module or ``input_scale`` not positive.
    """

    input_scale: Tensor

    def __init__(self, module: nn.Module, input_scale: float = 1.0) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if not 0.0 < input_scale < math.inf:
            raise ValueError(f"input_scale must be a positive number, got {input_scale}")
        self.module = module
        self.register_buffer("input_scale", torch.tensor(float(input_scale)))

    def forward(
        self, x: Float[Tensor, "batch stack height width"]
    ) -> Float[Tensor, "batch actions"]:
        """Evaluate the policy.

        Args:
            x: Stacks with pixels in 0..1, the newest picture last.

        Returns:
            Logits of the actions.

        Raises:
            ValueError: If the module returns no floating-point tensor.
        """
        answer = self.module(x * self.input_scale.to(x.dtype))
        path = _paths.first_float(answer)
        if path is None:
            raise ValueError(f"module must return logits, got {_paths.describe(answer)}")
        logits: Tensor = _paths.get(answer, path, "module's output")
        return logits
