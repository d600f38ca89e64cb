"""Closed-form solutions of partial differential equations in time and one dimension of space."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._types import BatchFn
from lightning_sobolev.functional.mixed import Index


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution u(t, x) and the equation that it solves."""

    value: BatchFn  # of points [batch, 2], time first; in torch operations, to be differentiated
    box: tuple[tuple[float, float], tuple[float, float]]  # low and high of time and of space
    residual: Callable[[dict[Index, Tensor]], Tensor]  # what the equation says is zero
    residual_indices: tuple[Index, ...] = ((0, 0), (1, 0), (0, 1), (0, 2))


def heat(diffusivity: float = 0.1) -> Solution:
    r"""Return two modes of the heat equation :math:`u_t = \nu u_{xx}`, zero at both ends.

    .. math:: u = e^{-\nu \pi^2 t} \sin(\pi x) + \tfrac{1}{2} e^{-9 \nu \pi^2 t} \sin(3 \pi x)

    The second fades nine times as fast: after t = 0.3 hardly anything is left of it.
    """

    def value(x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        rate = diffusivity * math.pi**2
        slow = torch.exp(-rate * x[:, 0]) * torch.sin(math.pi * x[:, 1])
        fast = torch.exp(-9 * rate * x[:, 0]) * torch.sin(3 * math.pi * x[:, 1])
        return slow + fast / 2

    return Solution(value, ((0.0, 1.0), (0.0, 1.0)), lambda u: u[1, 0] - diffusivity * u[0, 2])


def burgers(viscosity: float = 0.1, sharpness: float = 1.2) -> Solution:
    r"""Return a solution of Burgers' equation :math:`u_t + u u_x = \nu u_{xx}`, zero at both ends.

    By the transformation of Cole and Hopf :math:`u = -2 \nu \phi_x / \phi` solves it where
    :math:`\phi` solves the heat equation; here :math:`\phi = A + e^{-\nu \pi^2 t} \cos(\pi x)`, so

    .. math:: u = \frac{2 \nu \pi e^{-\nu \pi^2 t} \sin(\pi x)}
        {A + e^{-\nu \pi^2 t} \cos(\pi x)}.

    It begins as a steep front at x = 1, the steeper the closer A is to one, and flattens.

    Source:
        Hopf 1950, The partial differential equation u_t + u u_x = mu u_xx, for the transformation.
    """
    if not sharpness > 1.0:
        raise ValueError(f"sharpness must be above 1, got {sharpness}")

    def value(x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        fading = torch.exp(-viscosity * math.pi**2 * x[:, 0])
        phi = sharpness + fading * torch.cos(math.pi * x[:, 1])
        return 2 * viscosity * math.pi * fading * torch.sin(math.pi * x[:, 1]) / phi

    return Solution(
        value, ((0.0, 1.0), (0.0, 1.0)), lambda u: u[1, 0] + u[0, 0] * u[0, 1] - viscosity * u[0, 2]
    )


SOLUTIONS: dict[str, Callable[[], Solution]] = {"heat": heat, "burgers": burgers}
