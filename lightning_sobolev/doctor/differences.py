r"""The doctor checks the derivative term on the user's own student, before the first update.

:func:`examine` compares, on a copy in float64, the parameter gradient of

.. math:: g(\theta) = \sum_j \operatorname{mean} |\mathrm{proj}_j D^j m_\theta(x)|^2

with central differences along the gradient and along a random direction. A wrong double backward
(a fused layer norm at order 2) shows as a disagreement of tens of percent.
"""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sobolev._types import Query, Teacher
from lightning_sobolev.doctor.rehearsal import Rehearsal, own_random_numbers
from lightning_sobolev.functional.fisher import FISHER
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.observe.call import RowCut
from lightning_sobolev.observe.recorder import Observed, mapped
from lightning_sobolev.observe.remedies import sharded_parts
from lightning_sobolev.observe.rows import (
    NotDeterministicError,
    NotIndependentError,
    are_coupled,
    trained_batch_norms,
)
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers import BatchTeacher, DirectionalTeacher

TOLERANCE = 1e-2
"""Relative; spectral norm's power iteration moves with the parameters by up to 1e-3."""

SUBSPACE = 2_000_000
"""Parameters above which one direction in a random subspace is compared, and no more."""

MAX_PARAMETERS = 100_000_000
"""Parameters above which nothing is compared: the copy in float64 would take too much memory."""

_STEPS = {True: (1e-6, 1e-7, 1e-8), False: (1e-2, 1e-3, 1e-4)}
_ROWS, _MOST_COUPLED = 3, 64
_Tensors = Sequence[Tensor]


class NotChecked(Exception):
    """Why nothing was compared."""


class CoupledError(ValueError):
    """Stored derivatives cannot be those of this student."""


def examine(seen: Observed, loss: SobolevLoss) -> None:
    """Check the parameter gradient of the derivative terms on a float64 copy.

    Raises:
        ValueError: If it does not agree with finite differences.
    """  # noqa: DOC501 - NotChecked is caught
    terms = [term for term in loss.spec.terms if term.order > 0]
    if not terms or not seen.size:
        return
    try:
        check = _examination(seen, loss, terms)
        deviation = check.deviation()
        if not deviation <= TOLERANCE:
            _judge(check, deviation)
        if check.is_flat:
            raise NotChecked("the derivative does not depend on the student's parameters")
    except NotChecked as why:
        warnings.warn(f"Sobolev doctor: not checked: {why}", stacklevel=2)
        return
    rank_zero_info(f"Sobolev doctor: agrees with finite differences to {deviation:.0e}")


def _examination(seen: Observed, loss: SobolevLoss, terms: list[SobolevTerm]) -> "_Differences":
    module = seen.call.module
    is_split = any(type(parameter).__name__ == "DTensor" for parameter in module.parameters())
    if is_split or sharded_parts(module):
        raise NotChecked("parameters are sharded; finite differences need them whole")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if not trained:
        raise NotChecked("no parameter of the observed module requires a gradient")
    if sum(p.numel() for p in module.parameters()) > MAX_PARAMETERS:
        raise NotChecked(f"the student has {trained:,} parameters, more than {MAX_PARAMETERS:,}")
    try:
        check = _Differences(_on_few_rows(seen, loss), loss, terms, seen)
        first, again = check.value(), check.value()
    except (NotChecked, CoupledError):
        raise
    except Exception as problem:
        raise NotChecked(f"a copy in float64 does not run: {problem}") from problem
    if not torch.equal(first, again):
        raise NotChecked("the student is not deterministic")
    return check


def _on_few_rows(seen: Observed, loss: SobolevLoss) -> Rehearsal:
    # All on a copy: nothing that the student keeps in Python shall know of it.
    call, few = seen.call, None
    if call.alone and seen.size > _MOST_COUPLED:
        few = RowCut(torch.arange(_MOST_COUPLED, device=seen.x.device), {})
    copied = Rehearsal.of(seen, few).on_copy(_to_double)
    recorder = loss.recorder_of(
        copied.module, None, replace(copied.options, inner_precision="step")
    )
    recorder.snapshots, recorder.index = True, copied.index
    recorder.install()
    try:
        with _same_random_numbers():
            recorder.start()
            copied.call()
            recorder.stop()
            (again,) = recorder.chosen()
            cut = recorder.row_axes.cut(again, torch.arange(min(again.size, _ROWS)))
    except NotDeterministicError:
        raise NotChecked("the student is not deterministic") from None
    except NotIndependentError:
        _say_coupled(again, loss)
        if seen.size > _MOST_COUPLED:
            raise NotChecked(f"{seen.size} rows depend on one another, too many to run") from None
        return copied
    finally:
        recorder.remove()
    return Rehearsal.of(again, cut)


def _say_coupled(seen: Observed, loss: SobolevLoss) -> None:
    if trained_batch_norms(seen.call.module) or not are_coupled(seen):  # of these it is known
        return
    coupled = (
        "rows of the student are coupled: an output depends on another row's input, so the "
        "derivative that is matched for a row is not its own"
    )
    if isinstance(loss.teacher, BatchTeacher) and any(t.needs_cotangents for t in loss.spec.terms):
        raise CoupledError(
            f"doctor: {coupled}, and the derivatives in the batch cannot be those of random "
            "combinations of outputs. For graphs in one flat table name the graph of each node "
            "with groups=; doctor=False trains all the same"
        )
    if not isinstance(loss.teacher, DirectionalTeacher):  # its directions are of all rows at once
        warnings.warn(f"Sobolev doctor: {coupled}", stacklevel=2)


def _judge(check: "_Differences", deviation: float) -> None:
    if deviation != deviation:
        raise ValueError(
            "doctor: the parameter gradient of the derivative term must be finite, got NaN on the "
            "first rows: a derivative of the student has no derivative there (a root or a norm at "
            "zero?). doctor=False trains all the same"
        )
    if check.deviation(plain=True) > TOLERANCE:
        raise NotChecked(
            "finite differences say nothing here: they disagree with the gradient of the student's "
            "own value, too (a detach, a straight-through estimator?)"
        )
    raise ValueError(
        "doctor: the parameter gradient of the derivative term must agree with finite differences "
        f"to {TOLERANCE:.0%}, got a deviation of {deviation:.1%}; a layer of the student has a "
        "wrong double backward (a fused norm in a custom operation is the usual one), or none. "
        "doctor=False trains all the same"
    )


class _Zero(Teacher):
    """A target that vanishes: the loss against it is the size of the student's derivative."""

    def __init__(self, out_shape: torch.Size) -> None:
        self._out_shape = out_shape

    def at(self, query: Query) -> "_ZeroJet":
        return _ZeroJet(query, self._out_shape)


class _ZeroJet:
    def __init__(self, query: Query, out_shape: torch.Size) -> None:
        self._x, self.value = query.x, query.x.new_zeros(query.outputs, *out_shape)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self._x.new_zeros(len(cotangents), *self._x.shape)

    def jvp(self, tangents: Tensor) -> Tensor:
        return tangents.new_zeros(len(tangents), *self.value.shape)

    def hvp(self, cotangents: Tensor, tangents: Tensor) -> Tensor:
        del cotangents
        return torch.zeros_like(tangents)


class _Differences:
    """The size of the derivatives on a float64 copy, its gradient and its differences."""

    def __init__(
        self, rehearsal: Rehearsal, loss: SobolevLoss, terms: list[SobolevTerm], seen: Observed
    ) -> None:
        self._rehearsal = rehearsal
        module = self._rehearsal.module
        self._buffers = {n: b.clone() for n, b in module.named_buffers()}
        trained = [p for p in module.parameters() if p.requires_grad]
        self._is_large = sum(p.numel() for p in trained) > SUBSPACE
        self._parameters = _subspace(trained) if self._is_large else trained
        out_shape = mapped(loss.spec.output_map, seen.y.detach(), seen.x.detach()).shape[1:]
        plain = [_without_scale(term) for term in terms]
        probe = SobolevLoss(_Zero(out_shape), plain, on=loss.spec.on, seed=loss.seed, at_once=1)
        self._loss = probe.on_its_own()  # a process may have nothing to check
        options = self._rehearsal.options
        self._recorder = self._loss.recorder_of(module, None, options)
        self._recorder.index = rehearsal.index
        self._precision = _Precision()
        self.is_flat = False

    @property
    def is_double(self) -> bool:
        """Whether the copy computed in float64 throughout."""
        return not self._precision.is_lower

    def value(self, *, plain: bool = False) -> Tensor:
        """Return the size of the derivatives, or of the plain output."""
        with torch.no_grad():
            for name, buffer in self._rehearsal.module.named_buffers():
                buffer.copy_(self._buffers[name])
        self._loss.counter = 0
        recorder = self._recorder
        with _same_random_numbers():
            recorder.install()
            recorder.start()
            try:
                with self._precision:
                    self._rehearsal.call()
                recorder.stop()
                observed = recorder.chosen()
                if plain:
                    return observed[0].y.square().mean()
                return self._loss(observed).loss
            finally:
                recorder.remove()

    def deviation(self, *, plain: bool = False) -> float:
        """Return the largest relative difference between slopes and differences."""
        value, parameters = self.value(plain=plain), self._parameters
        with self._recorder.replay_options.remedies.recomputing:
            gradient = torch.autograd.grad(
                value, parameters, allow_unused=True, materialize_grads=True
            )
        norm, size = _length(gradient), float(value.detach())
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        if norm != norm:
            return norm
        if norm == 0.0 and not plain and not any(g.any() for g in gradient):
            self.is_flat = True
        directions: list[_Tensors] = [noise] if norm == 0.0 else [gradient, noise]
        if self._is_large and norm > 0.0:
            mean = norm / _length(noise)
            directions = [[g + mean * r for g, r in zip(gradient, noise, strict=True)]]
        return max(self._deviation(gradient, direction, size, plain) for direction in directions)

    def _deviation(
        self, gradient: _Tensors, direction: _Tensors, value: float, plain: bool
    ) -> float:
        length, norm = _length(direction), _length(gradient)
        unit = [d / length for d in direction]
        # torch's gradient in a complex parameter is the one of this real inner product.
        slope = sum(float((g.conj() * d).real.sum()) for g, d in zip(gradient, unit, strict=True))
        count = sum(d.numel() for d in unit)
        # A random direction sees about norm / sqrt(count) of the gradient.
        floor: float = max(norm / count**0.5, 1e-7 * abs(value), 1e-300)
        scale = max(1.0, _length([p.detach() for p in self._parameters]))
        best = float("inf")
        # Piecewise-linear students jump where a step crosses a kink: the best step counts.
        for step in _STEPS[self.is_double]:
            found = self._central_difference(unit, step * scale, plain)
            best = min(best, abs(found - slope) / max(abs(slope), abs(found), floor))
            if best <= 1e-3 * TOLERANCE:
                break
        return best

    def _central_difference(self, unit: list[Tensor], step: float, plain: bool) -> float:
        values = []
        for sign in (1.0, -1.0):
            self._shift(unit, sign * step)
            values.append(float(self.value(plain=plain).detach()))
            self._shift(unit, -sign * step)
        return (values[0] - values[1]) / (2.0 * step)

    @torch.no_grad()
    def _shift(self, unit: list[Tensor], amount: float) -> None:
        for parameter, direction in zip(self._parameters, unit, strict=True):
            parameter.add_(direction, alpha=amount)


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether something was computed in less than float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_lower = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype.itemsize < 8:
                self.is_lower = True
        return result


def _without_scale(term: SobolevTerm) -> SobolevTerm:
    law = "sphere" if term.projection == FISHER else term.projection
    return replace(
        term, weight=1.0, normalize="none", discrepancy="squared", rows=1.0, every_n_steps=1,
        projection=law,
    )  # fmt: skip


def _subspace(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    # A random subset that is small enough, and never empty.
    order = torch.randperm(len(parameters), generator=torch.Generator().manual_seed(0)).tolist()
    chosen: list[nn.Parameter] = []
    for index in order:
        if not chosen or sum(p.numel() for p in chosen) + parameters[index].numel() <= SUBSPACE:
            chosen.append(parameters[index])
    return chosen


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    with own_random_numbers(), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # the copy is on the CPU: no other is touched
        random.seed(0)
        np.random.seed(0)
        yield


def _length(vectors: _Tensors) -> float:
    return float(torch.stack([v.abs().square().sum() for v in vectors]).sum().sqrt())


def _to_double(tensor: Tensor) -> Tensor:
    # Moved first: not every device knows double precision.
    tensor = tensor.detach().cpu()
    if tensor.is_complex():  # Module.to(float64) would drop the imaginary part
        return tensor.to(torch.complex128, copy=True)
    return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.clone()
