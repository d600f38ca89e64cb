"""Five ways to break derivative matching, none of which may pass unnoticed.

``pytest --mutant=NAME`` breaks the package before the first test and counts the files in which
some test fails; ``make mutants`` runs the default suite on each. A test that starts an interpreter
of its own sees the package as it is.
"""

import functools
from dataclasses import replace

import pytest
import torch

from lightning_sobolev.loss import compare
from lightning_sobolev.loss.draws import Draws
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.loss.reduce import RunningScales

ENOUGH_FILES = 10


def _loss_times(factor):
    original = SobolevLoss.evaluate

    def evaluate(self, *args):
        report = original(self, *args)
        report.loss = factor * report.loss
        return report

    SobolevLoss.evaluate = evaluate


def _leave_the_scale_out():
    original = RunningScales.update
    RunningScales.update = lambda self, key, mean: torch.ones_like(original(self, key, mean))


def _draw_the_same_at_every_step():
    for name in ("cotangents", "tangents"):
        original = getattr(Draws, name)
        setattr(Draws, name, lambda self, *args, of=original: of(replace(self, counter=0), *args))


def _teach_the_student_itself():
    original = compare._distances
    compare._distances = lambda term, student, _: original(term, student, student.detach())


MUTANTS = {
    "term-x-0": functools.partial(_loss_times, 0.0),
    "term-x-2": functools.partial(_loss_times, 2.0),
    "scale-left-out": _leave_the_scale_out,
    "same-directions": _draw_the_same_at_every_step,
    "teacher-is-student": _teach_the_student_itself,
}


class BrokenPackage:
    """Applies a mutant; the session passes if tests of enough files fail."""

    def __init__(self, name):
        self.name, self.files = name, set()
        MUTANTS[name]()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.files.add(report.nodeid.split("::")[0])

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line("\n".join(sorted(self.files)))
        terminalreporter.write_line(f"{self.name}: {len(self.files)} files notice")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"):  # of pytest-xdist, which has no say
            session.exitstatus = int(len(self.files) < ENOUGH_FILES)
