r"""The doctor checks the derivative term on the user's own student, before the first update.

:func:`examine` compares, on a copy in float64, the parameter gradient of

.. math:: g(\theta) = \sum_j \operatorname{mean} |\mathrm{proj}_j D^j m_\theta(x)|^2

with central differences along the gradient and along random directions. A wrong double backward
(a fused layer norm at order 2) shows as a disagreement of tens of percent.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev.draws import Draws
from lightning_sobolev.objective import projected
from lightning_sobolev.plugin.observation import Observation, Probe, observed_call
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.probing import make_forward, make_probe
from lightning_sobolev.plugin.protect import sharded_parts
from lightning_sobolev.spec import SobolevTerm

TOLERANCE = 1e-2
"""Relative; spectral norm's power iteration moves with the parameters by up to 1e-3."""

_STEPS = (1e-6, 1e-7, 1e-8)
_MAX_ROWS = 3
_Tensors = Sequence[Tensor]


def examine(seen: Observation, policy: Policy, draws: Draws) -> None:
    """Check the parameter gradient of the derivative terms on a small float64 copy."""
    if all(term.order == 0 for term in policy.spec.terms):
        return
    is_split = any(type(parameter).__name__ == "DTensor" for parameter in seen.module.parameters())
    if is_split or sharded_parts(seen.module):
        rank_zero_info("Sobolev doctor: parameters are sharded; finite differences are skipped")
        return
    try:
        curvature = _Curvature(seen, policy, draws)
        first, again = curvature.value(), curvature.value()
    except (RuntimeError, TypeError) as problem:
        # Not a verdict on the student: it may not be copied, or fix its own precision inside.
        warnings.warn(f"Sobolev doctor: finite differences skipped: {problem}", stacklevel=2)
        return
    if not torch.equal(first, again) or not curvature.is_double:
        why = "is not deterministic" if curvature.is_double else "computes in its own precision"
        warnings.warn(f"Sobolev doctor: finite differences skipped: student {why}", stacklevel=2)
        return
    if curvature.couples_rows():
        warnings.warn(
            "Sobolev doctor: rows of the student are coupled: an output depends on another row's "
            "input, so the derivative that is matched for a row is not its own",
            stacklevel=2,
        )
    _judge(curvature)


def _judge(curvature: "_Curvature") -> None:
    deviation = curvature.disagreement()
    if not deviation <= TOLERANCE and curvature.disagreement(plain=True) > TOLERANCE:
        warnings.warn(
            "Sobolev doctor: finite differences say nothing here: they disagree with the "
            "gradient of the student's own value, too (a detach, a straight-through estimator?)",
            stacklevel=2,
        )
        return
    if not deviation <= TOLERANCE:
        raise ValueError(
            "doctor: the parameter gradient of the derivative term must agree with finite "
            f"differences to {TOLERANCE:.0%}, got a deviation of {deviation:.1%}; a layer of the "
            "student has a wrong double backward (a fused norm in a custom operation is the usual "
            "one). doctor=False trains all the same"
        )
    rank_zero_info(f"Sobolev doctor: agrees with finite differences to {deviation:.0e}")


class _Curvature:
    # g(theta) and its gradient on a float64 copy of the observed module.
    def __init__(self, seen: Observation, policy: Policy, draws: Draws) -> None:
        size = min(seen.size, _MAX_ROWS)
        rows = torch.arange(size, device=seen.x.device)
        inputs = _paths.take_rows(seen.inputs, rows, seen.size)
        self._inputs = _paths.map_tensors(inputs, _to_double)
        self._x = _to_double(seen.x[rows])
        self._seen, self._policy, self._draws = seen, policy, draws
        self._module = _plain_copy(seen.module)
        self._buffers = {n: b.clone() for n, b in self._module.named_buffers()}
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        self._directions: dict[int, Tensor] = {}
        self.is_double, self._plain = True, False

    def value(self) -> Tensor:
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                buffer.copy_(self._buffers[name])
        with _same_random_numbers():
            return self._value()

    def _observed(self, probe: Probe) -> Observation:
        point = self._x.detach().clone().requires_grad_()
        forward = make_forward(self._module, self._policy)
        seen, _ = observed_call(self._module, forward, self._inputs, self._seen.place, point, probe)
        return seen

    def couples_rows(self) -> bool:
        # Of batch norm it is known and said.
        modules = self._module.modules()
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in modules):
            return False
        with _same_random_numbers():
            seen = self._observed(replace(make_probe(self._policy, self._draws), engine="tape"))
            row = torch.randn(seen.y[0].shape, dtype=seen.y.dtype)
            value = (seen.y[0] * row).sum()
            (found,) = torch.autograd.grad(value, seen.x, materialize_grads=True)
        sizes = found.abs().reshape(len(found), -1).amax(1)
        return bool((sizes[1:] > 1e-9 * sizes[0]).any())

    def _value(self) -> Tensor:
        seen = self._observed(make_probe(self._policy, self._draws))
        self.is_double = seen.y.dtype == torch.float64
        if self._plain:
            return seen.y.square().mean()
        jet, total = seen.jet(), seen.x.new_zeros(())
        for index, term in enumerate(self._policy.spec.terms):
            if term.order == 0:
                continue
            u = self._cotangents(index, term, jet.value) if term.needs_cotangents else None
            v = self._draws.tangents(index, term, seen.x) if term.needs_tangents else None
            if seen.tangents is not None:
                v = seen.tangents
            total = total + projected(term, jet, u, v).square().mean()
        return total

    def _cotangents(self, index: int, term: SobolevTerm, y: Tensor) -> Tensor:
        # Drawn once: those that depend on the output would move with the parameters.
        if index not in self._directions:
            self._directions[index] = self._draws.cotangents(index, term, y.detach())
        return self._directions[index]

    def disagreement(self, *, plain: bool = False) -> float:
        self._plain = plain
        parameters, value = self._parameters, self.value()
        if not parameters or not value.requires_grad:
            return 0.0
        gradient = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        norm = _length(gradient)
        generator = torch.Generator().manual_seed(0)
        random = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        directions: list[_Tensors] = [random] if norm == 0.0 else [gradient, random]
        size = float(value.detach())
        return max(self._deviation(gradient, norm, d, size) for d in directions)

    def _deviation(
        self, gradient: _Tensors, norm: float, direction: _Tensors, value: float
    ) -> float:
        length = _length(direction)
        unit = [d / length for d in direction]
        # torch's gradient in a complex parameter is the one of this real inner product.
        slope = sum(float((g.conj() * d).real.sum()) for g, d in zip(gradient, unit, strict=True))
        count = sum(d.numel() for d in unit)
        # A random direction sees about norm / sqrt(count) of the gradient.
        floor: float = max(norm / count**0.5, 1e-7 * abs(value), 1e-300)
        scale = max(1.0, _length([p.detach() for p in self._parameters]))
        differences = [self._central_difference(unit, step * scale) for step in _STEPS]
        # Piecewise-linear students jump where a step crosses a kink: the best step counts.
        return min(abs(d - slope) / max(abs(slope), abs(d), floor) for d in differences)

    def _central_difference(self, unit: list[Tensor], step: float) -> float:
        values = []
        for sign in (1.0, -1.0):
            self._shift(unit, sign * step)
            values.append(float(self.value().detach()))
            self._shift(unit, -sign * step)
        return (values[0] - values[1]) / (2.0 * step)

    @torch.no_grad()
    def _shift(self, unit: list[Tensor], amount: float) -> None:
        for parameter, direction in zip(self._parameters, unit, strict=True):
            parameter.add_(direction, alpha=amount)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # the copy is on the CPU: no other is touched
        yield


def _length(vectors: _Tensors) -> float:
    return float(torch.stack([v.abs().square().sum() for v in vectors]).sum().sqrt())


def _to_double(tensor: Tensor) -> Tensor:
    # Moved first: not every device knows double precision.
    tensor = tensor.detach().cpu()
    if tensor.is_complex():  # Module.to(float64) would drop the imaginary part
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _plain_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(getattr(module, "_orig_mod", module))
    double: nn.Module = copied._apply(_to_double)
    return double
