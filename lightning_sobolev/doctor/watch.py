"""Stored labels as a fit sees them: gathered from its first batches, examined once."""

import warnings
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import Query, identity
from lightning_sobolev.doctor.gather import Gathering
from lightning_sobolev.doctor.labels import FEWEST_POINTS, LabelReport, examine_labels
from lightning_sobolev.loss.loss import Point
from lightning_sobolev.teachers.arrays import taken_rows
from lightning_sobolev.teachers.tabulated import TabulatedJet

OnFault = Literal["warn", "raise", "off"]
_POINTS, _NUMBERS = 500, 2**20


class LabelWatch:
    """Witness of a loss: gathers what a :class:`BatchTeacher` answers to the first batches.

    Only stored Jacobians are labels; their values are the teacher's, or the one tensor of the batch
    that has the shape of the student's output. All other answers are passed over: a network's are
    right by construction, and stored directions say nothing of the way to a neighbor.
    """

    def __init__(self) -> None:
        self._gathering, self._has_labels = Gathering(_POINTS, numbers=_NUMBERS), True

    @property
    def is_full(self) -> bool:
        """Whether it gathers no more."""
        return not self._has_labels or self._gathering.is_full

    def __call__(self, point: Point) -> None:
        """Take in what was asked and answered at a point of evaluation."""
        try:
            self._take(point)
        except Exception as problem:  # whatever else the batch holds
            self._give_up(problem)

    def _take(self, point: Point) -> None:
        stored = isinstance(point.target, TabulatedJet) and "jacobian" in point.target.gives
        # The way to a neighbor is one of all nodes of a graph.
        self._has_labels &= stored and point.query.groups is None
        jet = None if self.is_full else _labels(point)
        if jet is not None:
            self._gathering.take(point.query, jet)

    def report(self) -> LabelReport | None:
        """Examine what was gathered; None where that is too little."""
        if len(self._gathering) < FEWEST_POINTS:
            return None
        try:
            found = self._gathering.samples()
            known = found.x.isfinite().all(1)
            return examine_labels(found.x[known], found.y[known], found.jacobian[known])
        except Exception as problem:  # too little memory, for one
            self._give_up(problem)
            return None

    def _give_up(self, problem: Exception) -> None:
        self._has_labels = False
        rank_zero_info(f"Sobolev doctor: the labels were not examined: {problem}")


def tell(report: LabelReport, on_fault: OnFault) -> None:
    """Say what was found: a line of the log, or a warning or an error where it is a fault."""
    text = f"Sobolev doctor: {report.text()}"
    if not report.is_fault:
        rank_zero_info(text.splitlines()[0])
    elif on_fault == "raise":
        raise ValueError(text)
    else:
        warnings.warn(f'{text}\n  (labels="raise" stops the fit, "off" is silent)', stacklevel=2)


def _labels(point: Point) -> TabulatedJet | None:
    query, target, student = point.query, point.target, point.student
    if not isinstance(target, TabulatedJet) or student is None:
        return None
    x, jacobian, shape = query.x, target.jacobian, student.value.shape
    size = shape[1:].numel() * x.shape[1:].numel()
    if len(x) != shape[0] or len(jacobian) != len(x) or jacobian.shape[1:].numel() != size:
        return None
    value = target.value if "value" in target.gives else _only_values(query, jacobian, shape)
    if value is None or value.numel() != shape.numel() or len(value) != len(x):
        return None
    return TabulatedJet(x.shape[1:], value=value.reshape(shape), jacobian=jacobian)


def _only_values(query: Query, jacobian: Tensor, shape: torch.Size) -> Tensor | None:
    # What may be the labels' values; of several none is known to be.
    if query.on is not identity:
        return None
    floats = [tensor for _, tensor in _paths.tensors(query.batch) if tensor.is_floating_point()]
    columns = [taken_rows(tensor, query) for tensor in floats]
    fitting = [
        column.detach().to(query.x).reshape(shape)
        for column in columns
        if column is not None and len(column) == shape[0] and column.numel() == shape.numel()
    ]
    others = [
        other.reshape(shape) for other in (query.x, jacobian) if other.numel() == shape.numel()
    ]
    found = [one for one in fitting if not any(_is_multiple(one, other) for other in others)]
    return found[0] if len(found) == 1 else None


def _is_multiple(one: Tensor, other: Tensor) -> bool:
    # An array that the teacher has changed the sign or unit of is still that array.
    cosine = (one * other).nansum() / (one.nan_to_num().norm() * other.nan_to_num().norm())
    return bool(cosine.abs() > 1.0 - 1e-6)
