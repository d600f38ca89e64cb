"""What is looked at before a training begins: layers, gradient, cost, and what the data say."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn

from lightning_sobolev.doctor import layers
from lightning_sobolev.doctor.cost import Cost, measure
from lightning_sobolev.doctor.differences import examine
from lightning_sobolev.doctor.foresight import Foresight, foresight
from lightning_sobolev.doctor.labels import LabelReport, examine_labels
from lightning_sobolev.doctor.moves import Explained, NothingToExplain, explained
from lightning_sobolev.doctor.outlook import Outlook, Verdict
from lightning_sobolev.doctor.rehearsal import Rehearsal
from lightning_sobolev.doctor.teacher import TeacherReport, teacher_report
from lightning_sobolev.doctor.watch import LabelWatch, OnFault, tell
from lightning_sobolev.loss.loss import Occasion, SobolevLoss
from lightning_sobolev.observe.recorder import Observed, Recorder
from lightning_sobolev.observe.remedies import sharded_parts

__all__ = [
    "Cost", "Doctor", "Explained", "Foresight", "LabelReport", "NothingToExplain", "TeacherReport",
    "examine_labels", "explained", "foresight", "teacher_report",
]  # fmt: skip


class Doctor:
    """Examines one fit: its layers at the start, its gradient and cost on the first step."""

    def __init__(self) -> None:
        self.kept: tuple[Rehearsal, Occasion] | None = None
        """A call whose cost is to be measured when the step is over."""
        self.outlook: Outlook | None = None
        """Who gathers points, until it is known what they say of the derivatives."""
        self.labels: LabelWatch | None = None
        """Who gathers stored labels, until they are examined."""

    def scan(self, student: nn.Module, loss: SobolevLoss, recorder: Recorder) -> None:
        """Say which layers need a remedy; refuse those that have none."""
        layers.report(layers.scan(student, layers.Facts.of(loss, recorder)))

    def examine(self, seen: Observed, loss: SobolevLoss, occasion: Occasion) -> None:
        """Check the terms' gradient, and keep the call for :meth:`measure_cost`."""
        examine(seen, loss)
        if seen.comparisons is None:  # a copy would have to be compiled, too
            self.kept = Rehearsal.of(seen), occasion

    def foresee(self) -> Verdict | None:
        """Return once, between two steps, what the derivatives will do.

        Of several processes all must call this at the same steps.

        Returns:
            What was found; None where nothing is known yet, or there is nothing to say.
        """
        outlook = self.outlook
        if outlook is None or outlook.is_fresh:
            return None
        verdict = outlook.verdict() if outlook.processes == 1 else outlook.common_verdict()
        if outlook.is_over:
            self.outlook = None
        return verdict

    def watch_labels(self, loss: SobolevLoss) -> None:
        """Gather the labels of the first steps."""
        self.labels = LabelWatch()
        loss.witnesses.append(self.labels)

    def examine_labels(self, loss: SobolevLoss, on_fault: OnFault) -> LabelReport | None:
        """Examine what was gathered, once, and say what came out; None where it is too little."""
        watch, self.labels = self.labels, None
        if watch is None:
            return None
        loss.witnesses.remove(watch)
        report = watch.report()
        if report is not None:
            tell(report, on_fault)
        return report

    def forget(self, loss: SobolevLoss) -> None:
        """Drop what was kept: the fit is over, or came to no end."""
        self.kept = None
        if self.labels is not None:
            loss.witnesses.remove(self.labels)
            self.labels = None
        if self.outlook is not None:
            self.outlook.end()
            self.outlook = None

    @rank_zero_only
    def measure_cost(
        self, loss: SobolevLoss, precision: Callable[[], AbstractContextManager[Any]]
    ) -> Cost | None:
        """Measure once and say what came out; a student that cannot be measured is said to be."""
        kept, self.kept = self.kept, None
        if kept is None or sharded_parts(kept[0].module):
            return None
        try:
            with precision():
                cost = measure(*kept, loss)
        except (RuntimeError, TypeError, ValueError) as problem:  # memory may be short, for one
            rank_zero_info(f"Sobolev doctor: the cost was not measured: {problem}")
            return None
        rank_zero_info(f"Sobolev doctor: with the terms the student takes {cost}")
        return cost
