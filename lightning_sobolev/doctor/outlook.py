"""Foresight for one fit: its points are gathered while they are new, then looked at once.

Note [points of a part]
    A part of a data set is farther apart than the whole. What its derivatives explain, those of the
    whole explain, too; that they mislead is no verdict on the whole.

Note [points with structure]
    Students for positions of atoms or images know symmetries, under which points are near that are
    far apart in numbers. What derivatives explain all the same is evidence; that they explain
    nothing is none (docs/foresight.md: forces).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_sobolev._types import Jet, Query, StudentCall
from lightning_sobolev.doctor.asking import asked
from lightning_sobolev.doctor.foresight import Foresight, foresight
from lightning_sobolev.doctor.gather import Gathering, Samples
from lightning_sobolev.doctor.stored import stored_labels
from lightning_sobolev.loss.loss import Point, SobolevLoss
from lightning_sobolev.teachers import AnalyticTeacher, NetworkTeacher
from lightning_sobolev.teachers.tabulated import TabulatedJet

OnMislead = Literal["warn", "drop", "off"]
FEWEST_POINTS = 20
_MOST_POINTS, _MOST_NUMBERS = 4096, 2**22
_LEAST_KNOWN_ROWS = 16
_NOTHING = "Sobolev doctor: nothing was foreseen"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was foreseen of a fit, and from what.

    Args:
        foresight: The scores.
        points: Number of points they come from.
        is_all: Whether the fit has no others.
        is_flat: Whether a point is a row of numbers. See Note [points with structure].
        values: Which tensor of the batch was taken for the values; None: the teacher's own.
    """

    foresight: Foresight
    points: int
    is_all: bool
    is_flat: bool = True
    values: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether the derivatives mislead at all points of the fit."""
        return self.is_all and self.is_flat and self.foresight.harms

    @property
    def text(self) -> str:
        """One line for a log."""
        values = "" if self.values is None else f" (values: {self.values} in the batch)"
        if self.is_bad or not self.foresight.harms:
            return f"Sobolev doctor: at {self.points} points{values} {self.foresight.text}"
        if self.is_all:
            return (
                f"Sobolev doctor: {self.points} points{values} of several axes do not say whether "
                "the derivatives help: they are far apart in numbers, but perhaps not for a "
                "student that knows symmetries (HarmCheck tells)"
            )
        return (
            f"Sobolev doctor: the first {self.points} points{values} are too far apart to say "
            "whether the derivatives help (HarmCheck tells); all of them are closer together"
        )


@dataclass(frozen=True, slots=True)
class _Bare:
    """What a network that is asked for its input alone needs of a student's call."""

    output: Sequence[str | int]


class Outlook:
    """Gathers the points at which a loss is evaluated; gives one verdict when it has them all.

    Stored values and Jacobians are kept as they come. Networks and closed forms are asked at the
    end, at both ends of 32 pairs of near points: one forward pass, and a backward pass for each of
    their outputs, or for four fixed random combinations of more than 16.

    Nothing is said of teachers that know their own directions alone, of those that see more than
    the point, of compiled calls, and of values that no tensor of the batch can be taken for.

    Several processes put together what each has met in the first epoch: the verdict is the same in
    all of them.

    Args:
        loss: Whose points are looked at.
        processes: Number of processes that share the points of the fit.
    """

    def __init__(self, loss: SobolevLoss, processes: int = 1) -> None:
        self._loss, self.processes, self._begun = loss, processes, loss.counter
        self._gathered: Gathering | None = None
        self._last: Query | None = None  # without its points, batch and graph
        self._known_rows, self._values = 0, cast(str | None, None)
        self._waits = False
        self.is_over = not any(term.order for term in loss.spec.terms)
        if not self.is_over:
            loss.witnesses.append(self.take)

    @property
    def is_fresh(self) -> bool:
        """Whether there was no step yet; the same in all processes."""
        return self._loss.counter == self._begun

    def wait(self) -> None:
        """Take nothing of an epoch that a resumed fit enters in its middle: it brings a part."""
        self._waits = True

    def begin_epoch(self) -> None:
        """Take what comes from here on, if it was waited for."""
        if self._waits:
            self._waits, self._begun = False, self._loss.counter

    def end(self) -> None:
        """Take no more."""
        self.is_over, self._gathered, self._last = True, None, None
        if self.take in self._loss.witnesses:
            self._loss.witnesses.remove(self.take)

    def take(self, point: Point) -> None:
        """Keep what is new at a point; a step counts once, however often it is evaluated."""
        try:
            self._take(point)
        except Exception as problem:  # whatever else the batch holds
            rank_zero_info(f"{_NOTHING}: {problem}")
            self.end()

    def _take(self, point: Point) -> None:
        query = point.query
        if self._waits:
            return
        if self._last is not None and self._last.step == query.step:
            return
        jet = self._stored(point)
        if jet is None:
            self.end()
            return
        if self._gathered is None:
            numbers = _MOST_NUMBERS // self.processes
            most = min(_MOST_POINTS // self.processes, numbers // max(query.x[:1].numel(), 1))
            self._gathered = Gathering(most, batches=2**62, numbers=numbers)
        before = len(self._gathered)
        self._gathered.take(query, jet)
        if self._gathered.is_vain:  # points of several sizes, or too large ones
            self.end()
            return
        is_new = len(self._gathered) > before
        self._known_rows = 0 if is_new else self._known_rows + len(query.x)
        call = None if query.call is None else cast(StudentCall, _Bare(query.call.output))
        none = query.x.new_empty(0, *query.x.shape[1:])
        self._last = Query(none, query.on, call=call, step=query.step, alone=True)

    def verdict(self) -> Verdict | None:
        """Return what is foreseen once no new points come, or as many as are looked at."""
        gathered, last = self._gathered, self._last
        if not gathered or last is None:
            return None
        # Some rows that are known may come before the last new one where points are drawn anew.
        has_all = self._known_rows >= max(_LEAST_KNOWN_ROWS, len(gathered) // 4)
        if not (has_all or gathered.is_full):
            return None
        found = self._judged([gathered.samples()], last, has_all)
        self.end()
        return found

    def common_verdict(self) -> Verdict | None:
        """Return the last word of all processes, who call this together; None: nothing to say."""
        gathered, last = self._gathered, self._last
        own = (gathered.samples(), gathered.is_full) if gathered else None
        parts: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(parts, own)
        found = None
        if last is not None and None not in parts:
            samples, are_full = zip(*parts, strict=True)
            if len({part.jacobian.shape[1:] for part in samples}) == 1:
                found = self._judged(samples, last, not any(are_full))
        self.end()
        return found

    def _judged(self, parts: Sequence[Samples], last: Query, is_all: bool) -> Verdict | None:
        try:
            samples = _known(_united(parts) if len(parts) > 1 else parts[0])
            if len(samples) < FEWEST_POINTS:
                return None
            if samples.y.shape[1]:
                found = foresight(samples.x, samples.y, samples.jacobian)
            else:
                found = foresight(*asked(self._loss.teacher, last, samples.x), neighbors=1)
        except Exception as problem:  # a teacher that is asked once more, or too little memory
            rank_zero_info(f"{_NOTHING}: {problem}")
            return None
        return Verdict(found, len(samples), is_all, last.x.ndim <= 2, self._values)

    def _stored(self, point: Point) -> Jet | None:
        """Return a jet of arrays: without outputs where the teacher is to be asked; None: none."""
        query, jet, x = point.query, point.target, point.query.x
        if query.groups is not None:  # the way to a neighbor is one of all nodes of a graph
            return None
        if isinstance(jet, TabulatedJet):
            labels = stored_labels(point)
            if labels is None or len(x) == 0:
                return None
            self._values = labels.values
            return labels.jet
        teacher = self._loss.teacher
        if isinstance(teacher, NetworkTeacher):
            sees_more = teacher.inputs is not None or teacher.takes == "call" or not query.alone
        else:
            sees_more = not isinstance(teacher, AnalyticTeacher)
        if sees_more:
            return None
        none = x.new_empty(len(x), 0)
        return TabulatedJet(x.shape[1:], value=none, jacobian=none.reshape(len(x), 0, *x.shape[1:]))


def _known(samples: Samples) -> Samples:
    """Return those points whose values are numbers; what is infinite in a Jacobian is not known."""
    rows = samples.y.isfinite().all(1) & samples.x.isfinite().all(1)
    jacobian = samples.jacobian[rows]
    return Samples(
        samples.x[rows], samples.y[rows], jacobian.masked_fill(jacobian.isinf(), torch.nan)
    )


def _united(parts: Sequence[Samples]) -> Samples:
    """Join samples; a point that several processes have met counts once."""
    x, y, jacobian = (
        torch.cat(column) for column in zip(*((s.x, s.y, s.jacobian) for s in parts), strict=True)
    )
    _, place = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(x)).scatter_reduce(
        0, place, torch.arange(len(x)), "amin"
    )
    return Samples(x[first], y[first], jacobian[first])


def say(verdict: Verdict, on_mislead: OnMislead) -> None:
    """Say once what was foreseen; warn where the derivatives mislead."""
    if not verdict.is_bad:
        rank_zero_info(verdict.text)
    elif on_mislead == "drop":
        rank_zero_info(f"{verdict.text}; the terms are left out from here on (on_mislead='drop')")
    else:
        named = "" if verdict.values is None else _NAME
        _warn(f"{verdict.text}. {named}{_REMEDY}")


@rank_zero_only
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


_NAME = "Are the values others, or not in the batch? Name them (value=), or say on_mislead='off'. "
_REMEDY = (
    "HarmCheck() measures whether they do. Take a small balanced weight (Balanced(0.1)), more "
    "points, or leave the terms out: on_mislead='drop' does"
)
