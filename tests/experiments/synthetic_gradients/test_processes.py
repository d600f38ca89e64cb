import copy
import multiprocessing
import os
import signal
import threading
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import (
    LossModel,
    build_models,
)
from lightning_sobolev.experiments.synthetic_gradients.processes.channel import Channel, Cut
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import run_pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.stage import (
    BEATS,
    Pipeline,
    StageProcess,
)
from lightning_sobolev.experiments.synthetic_gradients.sections import split
from lightning_sobolev.experiments.synthetic_gradients.step import (
    build_stages,
    take_step,
    teach_again,
)
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    WITH_MODELS,
    Exact,
    batch,
    batches,
    maps,
    moved_along,
    predicted,
    stages,
    taught,
    vectors,
)

STEPS, ROWS, LR, MODEL_LR = 4, 6, 0.1, 0.002
HALVED = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
SETTINGS = {"optimizer": partial(torch.optim.SGD, lr=LR)}
SETTINGS |= {"model_optimizer": partial(torch.optim.SGD, lr=MODEL_LR)}


def weights(cut):
    parts = [part for s in cut for part in (s.section, s.model) if part is not None]
    return [parameter.detach().clone() for part in parts for parameter in part.parameters()]


def in_one_process(cut, drawn, updates):
    sections = [p for s in cut if s.is_trained for p in s.section.parameters()]
    models = [p for s in cut if s.model is not None for p in s.model.parameters()]
    by = [torch.optim.SGD(sections, lr=LR)]
    by += [torch.optim.SGD(models, lr=MODEL_LR)] if models else []
    schedules = [HALVED(optimizer) for optimizer in by]
    for one in drawn:
        for optimizer in by:
            optimizer.zero_grad()
        step = take_step(cut, one["x"], one["y"])
        for optimizer in by:
            optimizer.step()
        for _ in range(updates - 1 if models else 0):
            by[1].zero_grad()
            teach_again(cut, step.pairs, one["y"])
            by[1].step()
        for schedule in schedules:
            schedule.step()
    return weights(cut)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("network", "kind", "cuts", "updates"),
    [
        (maps, "sobolev", [1, 2, 3], 3),
        (vectors, "direct", [1, 3], 1),
        (maps, "backprop", [1, 3], 2),
        (vectors, "noprop", [2], 2),
    ],
)
def test_in_lockstep_processes_do_what_one_process_does(network, kind, cuts, updates):
    """The data begin anew when they end; a schedule goes on once a step."""
    cut, drawn = stages(network, cuts, kind, Matching()), batches(network, 2)
    settings = {**SETTINGS, "scheduler": HALVED, "model_updates": updates}
    reports = run_pipeline(cut, drawn, Pipeline(steps=STEPS, lockstep=True, **settings))
    alone = in_one_process(stages(network, cuts, kind, Matching()), 2 * drawn, updates)
    assert_close(weights(cut), alone, rtol=1e-10, atol=1e-12)
    learned = STEPS if kind in WITH_MODELS else 0
    assert [report.learned for report in reports] == [learned] * len(cuts) + [0]
    assert all(report.late == report.forgotten == 0 for report in reports)


@pytest.mark.usefixtures("float64")
def test_sections_move_along_models_that_have_nothing_to_train():
    """One that is known in closed form, and one that is frozen."""
    frozen = LossModel(nn.Linear(6, CLASSES)).requires_grad_(False)
    kind, matching = KINDS["sobolev"], Matching(normalize="none")
    cut = build_stages(split(vectors(), [1, 2]), [Exact(), frozen], kind, matching)
    (one,) = batches(vectors, 1)
    x, y = one["x"], one["y"]
    lower, upper = cut[0].section, cut[1].section
    h = lower(x).detach()
    along = predicted(frozen, "sobolev", upper(h).detach(), y)
    expected = stepped(lower, LR, moved_along(lower, x, 2 * (h - 1)))
    expected += stepped(upper, LR, moved_along(upper, h, along))
    before = copy.deepcopy(frozen.state_dict())
    run_pipeline(cut, [one], Pipeline(steps=1, lockstep=True, **SETTINGS))
    assert_close([*lower.parameters(), *upper.parameters()], expected, rtol=1e-10, atol=1e-12)
    assert_close(frozen.state_dict(), before, rtol=0, atol=0)


def test_nobody_waits_for_an_answer_when_decoupled():
    """With pauses in place of work: targets come late, and back-propagation waits."""
    pipeline = Pipeline(steps=12, delay=0.05, capacity=12, **SETTINGS)
    free, _ = run_pipeline(stages(vectors, [2], "sobolev"), batches(vectors, 6), pipeline)
    locked, _ = run_pipeline(stages(vectors, [2], "backprop"), batches(vectors, 6), pipeline)
    assert free.waited / free.seconds < locked.waited / locked.seconds / 2
    assert free.late > 0


class Deadly(nn.Module):
    def __init__(self, sent):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sent, self.seen = sent, 0

    def forward(self, h):
        self.seen += 1
        if self.seen == 3:
            if self.sent is None:
                raise KeyError("a fault of this stage alone")
            os.kill(os.getpid(), self.sent)
        return self.weight * h


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (signal.SIGKILL, "stage 1 must finish, got SIGKILL"),
        (None, "stage 1 must finish, got .*a fault of this stage alone"),
        (signal.SIGSTOP, "stage 1 must give a sign in 3 s, got none"),
    ],
)
def test_a_stage_that_is_lost_is_named_and_nobody_hangs(sent, message):
    wide = 20000  # a packet is more than a pipe holds
    layers = (nn.Linear(5, wide), nn.Sequential(Deadly(sent), nn.Linear(wide, 7)))
    sections = split(nn.Sequential(*layers, nn.Linear(7, CLASSES)), [1, 2])
    kind = KINDS["critic"]
    models = build_models(kind, [(wide,), (7,)], CLASSES)
    cut = build_stages(sections, models, kind, Matching())
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        run_pipeline(cut, batches(vectors, 6), Pipeline(steps=200, timeout=3.0, **SETTINGS))
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


def test_no_batches_end_the_run():
    with pytest.raises(RuntimeError, match=r"stage 0 must finish, got .*batches must be at least"):
        run_pipeline(stages(vectors, [2], "critic"), [], Pipeline(steps=1, **SETTINGS))


def test_what_was_received_stays_what_it_was():
    """Although its place is written again, and whatever its shape."""
    channel = Channel(multiprocessing.get_context(), 2)
    sizes = (4, 4, 5, 4, 4, 4, 5, 2, 2, 2)
    sent = [torch.full((rows, 3), float(number)) for number, rows in enumerate(sizes)]
    received = []
    for number, tensor in enumerate(sent):
        channel.send(number, [tensor], lambda: None)
        tensor += 100
        received.append(channel.receive(lambda: None))
    assert [number for number, _ in received] == list(range(10))
    assert_close([one for _, (one,) in received], [tensor - 100 for tensor in sent])


def lowest_process(kind, *, buffer=8, capacity=8, updates=1):
    """Return the process of a lowest stage, and what is above it, to be called in this one."""
    lower, upper = stages(vectors, [2], kind)
    above = Cut(multiprocessing.get_context(), capacity)
    signs = torch.zeros(2, dtype=torch.int64)
    pipeline = Pipeline(steps=9, buffer=buffer, model_updates=updates, **SETTINGS)
    return StageProcess(lower, pipeline, None, above, signs), upper.section, above


def answer(above, number, gradient, value):
    above.down.send(number, [gradient, value], lambda: None)
    while above.down.queue.empty():
        time.sleep(0.001)


def stepped(module, lr, slopes):
    pairs = zip(module.parameters(), slopes, strict=True)
    return [parameter.detach() - lr * slope for parameter, slope in pairs]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", WITH_MODELS)
@pytest.mark.parametrize("updates", [1, 3])
def test_a_late_target_teaches_the_model_alone_and_at_its_own_activation(kind, updates, generator):
    process, upper, above = lowest_process(kind, updates=updates)
    section, model = process.stage.section, process.stage.model
    pairs = [batch(vectors, generator) for _ in range(3)]
    for number, pair in enumerate(pairs[:2]):
        process.step(number, *pair)
    _, (h, y) = above.up.receive(lambda: None)
    h.requires_grad_()
    value = cross_entropy(upper(h), y, reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), h)
    value = value.detach()
    x, labels = pairs[2]
    after = copy.deepcopy(model)
    for _ in range(updates):
        slopes = taught(after, kind, h, y, value, gradient)
        expected = stepped(after, MODEL_LR, slopes)
        for parameter, moved_to in zip(after.parameters(), expected, strict=True):
            parameter.data = moved_to
    # the section moves along the prediction, as if there were no answer
    along = predicted(model, kind, section(x).detach(), labels)
    moved = stepped(section, LR, moved_along(section, x, along))
    answer(above, 0, gradient, value)
    process.step(2, x, labels)
    assert_close(list(model.parameters()), expected, rtol=1e-10, atol=1e-12)
    assert_close(list(section.parameters()), moved, rtol=1e-10, atol=1e-12)
    report = process.report
    assert (report.learned, report.late, report.forgotten) == (1, 2, 0)


def test_a_target_whose_activation_is_forgotten_teaches_nothing(generator):
    process, _, above = lowest_process("sobolev", buffer=2)
    before = copy.deepcopy(list(process.stage.model.parameters()))
    for number in range(4):
        if number == 3:
            answer(above, 0, torch.ones(ROWS, 6), torch.ones(ROWS))
        process.step(number, *batch(vectors, generator))
    assert_close(list(process.stage.model.parameters()), before, rtol=0, atol=0)
    assert (process.report.learned, process.report.forgotten) == (0, 1)


def test_a_stage_that_waits_for_room_takes_answers_meanwhile(generator):
    """Else both could wait for each other."""
    process, _, above = lowest_process("sobolev", capacity=1)
    pairs = [batch(vectors, generator) for _ in range(3)]
    below = threading.Thread(
        target=lambda: [process.step(number, *pair) for number, pair in enumerate(pairs)],
        daemon=True,
    )
    below.start()
    while not process.signs[BEATS]:  # it waits
        time.sleep(0.01)
    patience = iter(range(50))  # fifths of a second
    for _ in range(6):  # more than have room
        above.down.send(0, [torch.ones(ROWS, 6), torch.ones(ROWS)], lambda: next(patience))
    for number in range(3):
        assert above.up.receive(lambda: next(patience))[0] == number
    below.join(10)
    assert not below.is_alive()
    assert process.report.learned == 1
