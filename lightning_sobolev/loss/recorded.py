"""Whether a student's derivative has a graph at all.

Note [backward without a graph]
    An adjoint solver, or a Function whose backward pass runs in numpy or under ``no_grad``, gives
    right derivatives that nothing can be trained by: their gradient in the parameters is zero, in
    silence. A pulled-back row is linear in its cotangent u; where all of it was recorded, Euler's
    identity holds: the derivative of <u J, v> along u is <u J, v>.
"""

import warnings

import torch
from torch import Tensor, nn

from lightning_sobolev._types import Jet
from lightning_sobolev.functional.derivatives import FuncJet
from lightning_sobolev.spec import SobolevTerm

_NOTHING = "term {!r} trains nothing: {}"
_WAY_OUT = (
    "its gradient in the parameters would be zero or wrong without a word. A backward pass that "
    "records no graph is the usual reason: an adjoint ODE solver (odeint instead of odeint_adjoint "
    "records one), or an autograd.Function whose backward runs in numpy or under no_grad (write it "
    "in differentiable torch operations, or name another submodule with module=)"
)
TOLERANCES = {"float32": 1e-2}
"""Relative; where it holds, Euler's identity holds to rounding: to that of bfloat16 elsewhere."""

_COARSE = 0.3


def check_graph(term: SobolevTerm, rows: Tensor, root: nn.Module) -> None:
    """Refuse a derivative without any graph, unless nothing is trained or it is zero of order 2.

    Raises:
        ValueError: If the student has something to train and its derivative does not depend on it.
    """
    if not any(parameter.requires_grad for parameter in root.parameters()):
        return
    if term.order == 2 and not bool(rows.detach().any()):
        return  # piecewise linear: warned of
    raise ValueError(
        f"term {term.key!r}: the student's derivative must depend on its trained parameters, got "
        f"one without a graph; {_WAY_OUT}"
    )


def refuse_nan(module: nn.Module) -> None:
    """Name the parameter whose gradient is NaN.

    Raises:
        FloatingPointError: If there is one.
    """
    for name, parameter in module.named_parameters():
        gradient = getattr(parameter.grad, "_local_tensor", parameter.grad)
        if gradient is not None and bool(gradient.isnan().any()):
            raise FloatingPointError(
                f"the gradient of parameter {name!r} must be finite, got NaN although the loss and "
                "its terms are finite: a derivative of the student has no derivative here (a root "
                "or a norm at zero?)"
            )


def check_linear(term: SobolevTerm, student: Jet, inner_precision: str, root: nn.Module) -> None:
    """Refuse a derivative of which a part has no graph, see Note [backward without a graph].

    One that no parameter moves is warned of.

    Raises:
        ValueError: If Euler's identity does not hold.
    """
    y = student.value
    if isinstance(student, FuncJet) or y.dtype.itemsize < 4:
        return
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device).requires_grad_()
    row = student.vjp(u.unsqueeze(0))[0]
    v = torch.randn(row.shape, generator=generator, dtype=row.dtype).to(row.device)
    product = (row * v).sum()
    if not product.requires_grad:
        return  # seen to once the term is there
    trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
    found, *moved = torch.autograd.grad(
        product, [u, *trained], retain_graph=True, allow_unused=True
    )
    if trained and term.order == 1 and all(gradient is None for gradient in moved):
        why = "the student's derivative does not depend on any parameter"
        warnings.warn(_NOTHING.format(term.key, why), stacklevel=2)
    along = torch.zeros_like(product) if found is None else (found * u).sum()
    apart = float((along - product).detach().abs())
    size = float((row.detach().norm() * v.norm()).detach()) / max(row.numel(), 1) ** 0.5
    if size < torch.finfo(y.dtype).tiny ** 0.5:
        return  # among numbers that underflow nothing holds
    if apart > TOLERANCES.get(inner_precision, _COARSE) * size:
        raise ValueError(
            f"term {term.key!r}: the student's derivative must have been recorded whole, got one "
            f"of which a part has no graph; {_WAY_OUT}"
        )
