"""Stored labels as a fit sees them: gathered from its first batches, examined once."""

import warnings
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info

from lightning_sobolev.doctor.gather import Gathering
from lightning_sobolev.doctor.labels import FEWEST_POINTS, LabelReport, examine_labels
from lightning_sobolev.doctor.stored import stored_labels
from lightning_sobolev.loss.loss import Point
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
        labels = None if self.is_full else stored_labels(point)
        if labels is not None:
            self._gathering.take(point.query, labels.jet)

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
