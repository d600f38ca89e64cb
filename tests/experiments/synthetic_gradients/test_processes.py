import os
import signal
import time

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import Pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.processes import run_processes
from lightning_sobolev.experiments.synthetic_gradients.processes.worker import Part
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import take_step
from lightning_sobolev.objective import RunningScales
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    SHAPES,
    batch,
    learned,
    maps,
    vectors,
)

STEPS, ROWS = 6, 6
MATCHING = Matching(normalize="target")


def optimize(module, is_model):
    return Part(module, torch.optim.SGD(module.parameters(), lr=0.002 if is_model else 0.1))


class Deadly(nn.Module):
    """Ends its process, or stops it, at the third batch."""

    def __init__(self, sent):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sent, self.seen = sent, 0

    def forward(self, h):
        self.seen += 1
        if self.seen == 3:
            if self.sent is None:
                raise KeyError("a fault of this section alone")
            os.kill(os.getpid(), self.sent)
        return self.weight * h


def built(network, kind, cuts):
    net = network()
    sections = split(net, cuts)
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    models = learned(build_models(KINDS[kind], shapes, CLASSES))
    return sections, models, shapes


def drawn(network, count=STEPS):
    generator = torch.Generator().manual_seed(5)
    pairs = (batch(network, generator, ROWS) for _ in range(count))
    return [{"x": x, "y": y} for x, y in pairs]


def run(network, kind, cuts, **options):
    sections, models, shapes = built(network, kind, cuts)
    options = {"steps": STEPS, "batch_size": ROWS, "timeout": 30.0, **options}
    reports = run_processes(
        sections,
        models,
        drawn(network),
        kind=KINDS[kind],
        shapes=shapes,
        optimize=optimize,
        pipeline=Pipeline(**options),
        matching=MATCHING,
    )
    return [p for part in (*sections, *models) for p in part.parameters()], reports


def in_one_process(network, kind, cuts):
    sections, models, _ = built(network, kind, cuts)
    parts = [optimize(section, False) for section in sections]
    parts += [optimize(model, True) for model in models]
    scales = [RunningScales() for _ in models]
    for drawn_batch in drawn(network):
        take_step(
            sections, models, drawn_batch["x"], drawn_batch["y"],
            kind=KINDS[kind], matching=MATCHING, scales=scales,
        )  # fmt: skip
        for moved in parts:
            if kind != "noprop" or moved.module is sections[-1]:
                moved.move()
    return [p for part in (*sections, *models) for p in part.parameters()]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("network", "kind", "cuts"),
    [(maps, "sobolev", [1, 2, 3]), (vectors, "direct", [1, 3]), (maps, "backprop", [1, 3])],
)
def test_in_lockstep_processes_do_what_one_process_does(network, kind, cuts):
    ours, reports = run(network, kind, cuts, lockstep=True)
    for moved, true in zip(ours, in_one_process(network, kind, cuts), strict=True):
        assert_close(moved, true, rtol=1e-10, atol=1e-12)
    assert [report.section for report in reports] == list(range(len(cuts) + 1))
    taught = STEPS if kind != "backprop" else 0
    assert [report.learned for report in reports] == [taught] * len(cuts) + [0]
    assert all(report.lateness == report.forgotten == 0 for report in reports)


def test_a_section_that_is_slower_above_does_not_hold_up_the_one_below():
    """With pauses in place of work: nobody waits for a gradient, and targets come late."""
    _, free = run(vectors, "sobolev", [2], delay=0.05, steps=12, room=12)
    _, locked = run(vectors, "backprop", [2], delay=0.05, steps=12)
    assert free[0].waited / free[0].seconds < 0.15
    assert locked[0].waited / locked[0].seconds > 0.3
    assert free[0].lateness > 0


def test_a_model_is_needed_for_every_cut():
    sections, models, shapes = built(vectors, "sobolev", [1, 3])
    with pytest.raises(ValueError, match="must be 2 and 2 for 3 sections of this kind, got 1 and"):
        run_processes(
            sections,
            models[:1],
            drawn(vectors),
            kind=KINDS["sobolev"],
            shapes=shapes,
            optimize=optimize,
            pipeline=Pipeline(steps=1, batch_size=ROWS),
        )


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "section 0 .*batches must give at least one batch, got none"),
        (drawn(vectors, 1), "section 0 .*every batch must have 5 rows, got 6 in batch 0"),
    ],
)
def test_batches_that_do_not_fit_end_the_run(batches, message):
    sections, models, shapes = built(vectors, "sobolev", [2])
    with pytest.raises(RuntimeError, match=message):
        run_processes(
            sections,
            models,
            batches,
            kind=KINDS["sobolev"],
            shapes=shapes,
            optimize=optimize,
            pipeline=Pipeline(steps=1, batch_size=ROWS - 1, timeout=10.0),
        )


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (signal.SIGKILL, "section 1 .*SIGKILL"),
        (None, "section 1 .*a fault of this section alone"),
        (signal.SIGSTOP, "section 1 must answer"),
    ],
)
def test_a_section_that_is_lost_is_named_and_nobody_hangs(sent, message):
    net = nn.Sequential(nn.Linear(5, 7), nn.Sequential(Deadly(sent), nn.Linear(7, CLASSES)))
    sections = split(net, [1])
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        run_processes(
            sections,
            build_models(KINDS["sobolev"], [(7,)], CLASSES),
            drawn(vectors, 200),
            kind=KINDS["sobolev"],
            shapes=[(7,)],
            optimize=optimize,
            pipeline=Pipeline(steps=200, batch_size=ROWS, timeout=3.0),
        )
    assert time.monotonic() - started < 60
