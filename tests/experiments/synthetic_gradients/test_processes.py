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
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.processes.channel import build_cut
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import run_pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.settings import (
    Optimizers,
    Pipeline,
)
from lightning_sobolev.experiments.synthetic_gradients.processes.stage import BEATS, StageProcess
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import build_stages, take_step
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    SHAPES,
    batch,
    learned,
    maps,
    vectors,
)

STEPS, ROWS, MODEL_LR = 6, 6, 0.002
WITH_MODELS = [name for name, kind in KINDS.items() if kind.model is not None]
OPTIMIZERS = Optimizers(
    section=partial(torch.optim.SGD, lr=0.1), model=partial(torch.optim.SGD, lr=MODEL_LR)
)


def built(network, kind, cuts, normalize="target"):
    sections = split(network(), cuts)
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    models = learned(build_models(KINDS[kind], shapes, CLASSES))
    return build_stages(sections, models, KINDS[kind], Matching(normalize=normalize))


def drawn(network, count=STEPS):
    generator = torch.Generator().manual_seed(5)
    pairs = (batch(network, generator, ROWS) for _ in range(count))
    return [{"x": x, "y": y} for x, y in pairs]


def weights(stages):
    parts = [part for s in stages for part in (s.section, s.model) if part is not None]
    return [parameter.detach().clone() for part in parts for parameter in part.parameters()]


def in_one_process(stages, batches):
    optimizers = [OPTIMIZERS.section(s.section.parameters()) for s in stages if s.is_trained]
    optimizers += [OPTIMIZERS.model(s.model.parameters()) for s in stages if s.model is not None]
    for one in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        take_step(stages, one["x"], one["y"])
        for optimizer in optimizers:
            optimizer.step()
    return weights(stages)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("network", "kind", "cuts"),
    [(maps, "sobolev", [1, 2, 3]), (vectors, "direct", [1, 3]), (maps, "backprop", [1, 3])],
)
def test_in_lockstep_processes_do_what_one_process_does(network, kind, cuts):
    stages, steps = built(network, kind, cuts), []
    pipeline = Pipeline(steps=STEPS, lockstep=True)
    reports = run_pipeline(stages, drawn(network), OPTIMIZERS, pipeline, watch=steps.append)
    alone = in_one_process(built(network, kind, cuts), drawn(network))
    assert_close(weights(stages), alone, rtol=1e-10, atol=1e-12)
    taught = STEPS if kind != "backprop" else 0
    assert [report.learned for report in reports] == [taught] * len(cuts) + [0]
    assert all(report.lateness == report.forgotten == 0 for report in reports)


@pytest.mark.usefixtures("float64")
def test_the_locked_pipeline_is_back_propagation():
    """Of the whole network by one optimizer; the data begin anew when they end."""
    whole, stages = vectors(), built(vectors, "backprop", [1, 3])
    run_pipeline(stages, drawn(vectors, 2), OPTIMIZERS, Pipeline(steps=4))
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    for one in 2 * drawn(vectors, 2):
        optimizer.zero_grad()
        cross_entropy(whole(one["x"]), one["y"]).backward()
        optimizer.step()
    assert_close(weights(stages), list(whole.parameters()), rtol=1e-10, atol=1e-12)


def test_nobody_waits_for_an_answer_when_decoupled():
    """With pauses in place of work: targets come late, and back-propagation waits."""
    steps = 12
    batches, slow = drawn(vectors), {"steps": steps, "delay": 0.05}
    free = run_pipeline(
        built(vectors, "sobolev", [2]), batches, OPTIMIZERS, Pipeline(**slow, capacity=steps)
    )
    locked = run_pipeline(built(vectors, "backprop", [2]), batches, OPTIMIZERS, Pipeline(**slow))
    assert free[0].waited / free[0].seconds < 0.15
    assert locked[0].waited / locked[0].seconds > 0.3
    assert free[0].lateness > 0


class Slow(nn.Linear):
    """Takes its time."""

    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)


def test_a_stage_waits_for_room_above():
    """The one below could be done in no time, and keeps no more under way than it may."""
    net = nn.Sequential(nn.Linear(5, 7), Slow(7, CLASSES))
    kind = KINDS["sobolev"]
    stages = build_stages(split(net, [1]), build_models(kind, [(7,)], CLASSES), kind, Matching())
    lowest, _ = run_pipeline(
        stages, drawn(vectors), OPTIMIZERS, Pipeline(steps=20, capacity=2, buffer=8)
    )
    assert lowest.waited / lowest.seconds > 0.5
    assert lowest.forgotten == 0
    assert lowest.lateness <= 4  # two in the queue, one at work, and the one that has just gone


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
    stages = build_stages(sections, models, kind, Matching())
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        run_pipeline(stages, drawn(vectors), OPTIMIZERS, Pipeline(steps=200, timeout=3.0))
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


def test_no_batches_end_the_run():
    with pytest.raises(
        RuntimeError, match=r"stage 0 must finish, got .*must give at least one batch, got none"
    ):
        run_pipeline(built(vectors, "critic", [2]), [], OPTIMIZERS, Pipeline(steps=1))


def test_what_was_received_stays_what_it_was():
    """Although its place is written again, and whatever its shape."""
    channel = build_cut(multiprocessing.get_context(), 2).up
    sizes = (4, 4, 5, 4, 4, 4, 5, 2, 2, 2)
    sent = [torch.full((rows, 3), float(number)) for number, rows in enumerate(sizes)]
    received = []
    for number, tensor in enumerate(sent):
        channel.send(number, [tensor], lambda: None)
        tensor += 100
        received.append(channel.receive(lambda: None))
    assert [number for number, _ in received] == list(range(10))
    assert_close([one for _, (one,) in received], [tensor - 100 for tensor in sent])


def lowest_process(kind, *, buffer=8, capacity=8):
    """Return the process of a lowest stage, and what is above it, to be called in this one."""
    lower, upper = built(vectors, kind, [2], normalize="none")
    above = build_cut(multiprocessing.get_context(), capacity)
    signs = torch.zeros(2, dtype=torch.int64)
    process = StageProcess(lower, OPTIMIZERS, Pipeline(steps=9, buffer=buffer), None, above, signs)
    return process, upper, above


def answer(above, number, gradient, value):
    """Send a target down and wait until it is there."""
    above.down.send(number, [gradient, value], lambda: None)
    while above.down.is_empty:
        time.sleep(0.001)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_a_late_target_teaches_the_model_alone_and_at_its_own_activation(kind, generator):
    process, upper, above = lowest_process(kind)
    section, model = process.stage.section, process.stage.model
    pairs = [batch(vectors, generator) for _ in range(3)]
    for number, pair in enumerate(pairs[:2]):
        process._step(number, *pair)
    _, (h, y) = above.up.receive(lambda: None)
    h.requires_grad_()
    value = cross_entropy(upper.section(h), y, reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), h)
    value = value.detach()
    reference, leaf = copy.deepcopy(model), h.detach().requires_grad_()
    answered = reference(leaf, y)
    loss = 0.0
    if kind == "direct":
        loss = (answered - gradient).square().flatten(1).sum(1).mean()
    if kind in ("sobolev", "critic"):
        loss = (answered - value).square().mean()
    if kind in ("sobolev", "vfbn"):
        (slope,) = torch.autograd.grad(answered.sum(), leaf, create_graph=True)
        loss = loss + (slope - gradient).square().flatten(1).sum(1).mean()
    loss.backward()
    expected = [p.detach() - MODEL_LR * p.grad for p in reference.parameters()]
    unanswered = copy.deepcopy(section), copy.deepcopy(model)
    answer(above, 0, gradient, value)
    process._step(2, *pairs[2])
    assert_close(list(model.parameters()), expected, rtol=1e-10, atol=1e-12)
    assert (process._learned, process._lateness, process._forgotten) == (1, 2, 0)
    # the section moved along the prediction, as if there had been no answer
    output = unanswered[0](pairs[2][0])
    leaf = output.detach().requires_grad_()
    predicted = unanswered[1](leaf, pairs[2][1])
    if kind != "direct":
        (predicted,) = torch.autograd.grad(predicted.sum(), leaf)
    (output * predicted.detach()).sum().div(ROWS).backward()
    moved = [p.detach() - 0.1 * p.grad for p in unanswered[0].parameters()]
    assert_close(list(section.parameters()), moved, rtol=1e-10, atol=1e-12)


def test_a_target_whose_activation_is_forgotten_teaches_nothing(generator):
    process, _, above = lowest_process("sobolev", buffer=2)
    model = process.stage.model
    before = copy.deepcopy(list(model.parameters()))
    for number in range(4):
        if number == 3:
            answer(above, 0, torch.ones(ROWS, 6), torch.ones(ROWS))
        process._step(number, *batch(vectors, generator))
    assert_close(list(model.parameters()), before, rtol=0, atol=0)
    assert (process._learned, process._forgotten) == (0, 1)


def test_a_stage_that_waits_for_room_takes_answers_meanwhile(generator):
    """Else both could wait for each other."""
    process, _, above = lowest_process("sobolev", capacity=1)
    pairs = [batch(vectors, generator) for _ in range(3)]
    below = threading.Thread(
        target=lambda: [process._step(number, *pair) for number, pair in enumerate(pairs)],
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
    assert process._learned == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1, "buffer": 0}, "buffer must be at least 1, got 0"),
        ({"steps": 1, "delay": -1.0}, "got -1.0 and 60.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(**settings)
