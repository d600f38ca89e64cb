import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.messages import Message, speak
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import Pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.worker import (
    Activation,
    Memory,
    Part,
    Target,
    Worker,
)
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    SHAPES,
    batch,
    learned,
    maps,
    vectors,
)

pytestmark = pytest.mark.usefixtures("float64")
EXACT = {"rtol": 1e-10, "atol": 1e-12}
WITH_MODELS = [name for name, kind in KINDS.items() if kind.model is not None]


def part(module, lr=0.1):
    return Part(module, torch.optim.SGD(module.parameters(), lr=lr))


def workers(network, kind, cuts, *, model_lr=0.05, room=8):
    """Build the workers of a network, the lowest first."""
    sections = split(network(), cuts)
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    models = learned(build_models(KINDS[kind], shapes, CLASSES))
    models = [part(model, model_lr) for model in models] or [None] * len(shapes)
    last = len(sections) - 1
    return [
        Worker(
            part(section),
            model,
            kind=KINDS[kind],
            matching=Matching(normalize="none"),
            is_first=number == 0,
            is_last=number == last,
            room=room,
        )
        for number, (section, model) in enumerate(zip(sections, [*models, None], strict=True))
    ]


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def truth(above, h, y):
    leaf = h.detach().requires_grad_()
    losses = cross_entropy(above(leaf), y, reduction="none")
    return Message(torch.autograd.grad(losses.sum(), leaf)[0], losses.detach())


@pytest.mark.parametrize("kind", WITH_MODELS)
def test_a_target_of_long_ago_teaches_at_its_own_activation(kind, generator):
    """Three batches went up before the first answer came."""
    lower, upper = workers(vectors, kind, [2])
    sent = []
    for number in range(3):
        sent.append(lower.forward(Activation(number, *batch(vectors, generator))))
        lower.move()
    target = truth(copy.deepcopy(upper.section.module), sent[0].h, sent[0].y)
    model = copy.deepcopy(lower.model.module)
    said = speak(model, KINDS[kind], sent[0].h, sent[0].y, create_graph=True)
    loss = 0.0
    if kind in ("sobolev", "critic"):
        loss = (said.value - target.value).square().mean()
    if kind != "critic":
        loss = loss + (said.gradient - target.gradient).square().flatten(1).sum(1).mean()
    loss.backward()
    expected = [p.detach() - 0.05 * p.grad for p in model.parameters()]
    assert lower.learn(Target(0, target))
    for ours, true in zip(weights(lower.model.module), expected, strict=True):
        assert_close(ours, true, **EXACT)
    assert (lower.learned, lower.lateness, lower.forgotten) == (1, 2, 0)


def test_a_target_whose_activation_is_forgotten_teaches_nothing(generator):
    lower, upper = workers(vectors, "sobolev", [2], room=2)
    sent = []
    for number in range(3):
        sent.append(lower.forward(Activation(number, *batch(vectors, generator))))
        lower.move()
    before = weights(lower.model.module)
    target = truth(upper.section.module, sent[0].h, sent[0].y)
    assert not lower.learn(Target(0, target))
    for new, old in zip(weights(lower.model.module), before, strict=True):
        assert_close(new, old, rtol=0, atol=0)
    assert (lower.learned, lower.forgotten) == (0, 1)
    assert lower.learn(Target(1, target))
    assert not lower.learn(Target(1, target))  # nothing teaches twice


@pytest.mark.parametrize("kind", WITH_MODELS)
def test_no_true_gradient_moves_a_section(kind):
    """Whatever comes from above, a section moves along what its model says."""
    moved = []
    for factor in (1.0, -50.0):
        torch.manual_seed(0)
        lower, upper = workers(vectors, kind, [2], model_lr=0.0)
        draws = torch.Generator().manual_seed(3)
        for number in range(3):
            sent = lower.forward(Activation(number, *batch(vectors, draws)))
            lower.move()
            upper.forward(sent)
            target = upper.move()
            message = Message(factor * target.message.gradient, factor * target.message.value)
            lower.learn(Target(number, message))
        moved.append(weights(lower.section.module))
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


@pytest.mark.parametrize("network", [vectors, maps])
def test_a_section_that_gets_the_true_gradient_is_back_propagation(network, generator):
    stack = workers(network, "backprop", [1, 3])
    x, y = batch(network, generator)
    whole = network()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    for number in range(2):
        given = Activation(number, x, y)
        for worker in stack:
            given = worker.forward(given)
        target = stack[-1].move()
        for worker in stack[-2::-1]:
            assert worker.awaits_gradient
            target = worker.move(target.message)
        optimizer.zero_grad()
        cross_entropy(whole(x), y).backward()
        optimizer.step()
    ours = [p for worker in stack for p in worker.section.module.parameters()]
    for moved, true in zip(ours, whole.parameters(), strict=True):
        assert_close(moved, true, **EXACT)


def test_a_section_without_gradient_and_model_is_refused(generator):
    lower, _ = workers(vectors, "backprop", [2])
    lower.forward(Activation(4, *batch(vectors, generator)))
    with pytest.raises(ValueError, match="must be a gradient, got none for 4"):
        lower.move()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(Memory, 0), "room must be at least 1, got 0"),
        (partial(Pipeline, steps=0, batch_size=4), "steps must be at least 1, got 0"),
        (partial(Pipeline, steps=1, batch_size=4, delay=-1.0), "got -1.0 and 60.0"),
    ],
)
def test_settings_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()
