"""Under manual optimization each observed call gets its term from a backward that reaches it."""

import pytest
import torch
from torch.nn.functional import mse_loss

from tests.kinds import _manual as steps
from tests.kinds import _reference as reference
from tests.kinds._by_hand import RANDOM, Overheard, along, assert_all_differ, exact
from tests.kinds._measure import (
    WAYS,
    Spy,
    Way,
    assert_parts,
    assert_updates,
    batch,
    in_turn,
    sobolev,
    target,
    update,
)
from tests.plugin._trainers import as_loader, fit, fit_one_step

X = batch()[0]
ONCE, TWICE, CHUNKS = [X], [X, 3.0 * X], list(X.chunk(3))
FEW = {name: WAYS[name] for name in ("tape", "func, tangents", "all rows", "order 2, func")}
ways = pytest.mark.parametrize("way", FEW.values(), ids=FEW)


def named(taught):
    return f"{taught[0].__name__}, {taught[1]}"


# What step, with which call=, is taught at which points.
TAUGHT = [
    *[(steps.Manual, call, ONCE) for call in ("first", "all", 0, -1)],
    *[(steps.MicroBatches, call, CHUNKS) for call in ("first", "all")],
    *[(steps.MicroBatches, number, [CHUNKS[number]]) for number in range(3)],
    *[(steps.OneByOne, call, TWICE) for call in ("first", "all")],
    *[(steps.OneByOne, number, [TWICE[number]]) for number in range(2)],
    *[(steps.CallsFirst, call, TWICE) for call in ("first", "all")],
    *[(steps.CallsFirst, number, [TWICE[number]]) for number in (0, 1, -1, -2)],
    *[(steps.LastFirst, call, TWICE[::-1]) for call in ("first", "all")],
    *[(steps.LastFirst, number, [TWICE[number]]) for number in (0, 1, -1, -2)],
    *[(steps.Together, number, [TWICE[number]]) for number in (0, 1, -1, -2)],
    (steps.Together, "first", ONCE),
    *[(step, c, ONCE) for step in (steps.Halves, steps.Heads) for c in ("first", "all", 0, -1)],
    *[(steps.Adversarial, call, [3.0 * X]) for call in ("first", 1)],
    *[(steps.InClosure, call, ONCE) for call in ("first", "all", 0)],
]


@pytest.mark.parametrize(
    ("taught", "name"), in_turn(TAUGHT, FEW), ids=lambda v: v if isinstance(v, str) else named(v)
)
def test_the_terms_are_those_of_the_chosen_calls(taught, name):
    make, call, parts = taught
    assert_parts(make, FEW[name], parts, call=call)


@pytest.mark.parametrize("make", [steps.MicroBatches, steps.OneByOne])
@pytest.mark.parametrize("call", ["first", "all"])
def test_each_call_has_rows_of_its_own(make, call):
    parts = CHUNKS if make is steps.MicroBatches else TWICE
    assert_parts(make, Way(rows=0.5), parts, call=call)


@ways
@pytest.mark.parametrize("call", ["first", "all"])
def test_losses_that_are_divided_by_their_number_have_terms_that_are_divided(call, way):
    """Then three parts of a batch are the batch."""
    found = update(steps.Averaged, batch, sobolev(way, Spy(), call=call, manual_scale=1 / 3))
    module = steps.Averaged()
    value = reference.term(way.kind, module.net, target, X)
    assert_updates(found, reference.gradient(value, module), way.rtol)


@ways
@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_the_scale_multiplies_every_term(scale, way):
    assert_parts(steps.MicroBatches, way, CHUNKS, factor=scale, manual_scale=scale)
    assert_parts(steps.Manual, way, ONCE, factor=scale, manual_scale=scale)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "half"])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match=r"^manual_scale must be a finite number > 0, got"):
        sobolev(Way(), Spy(), manual_scale=scale)


@ways
def test_all_calls_that_one_backward_reaches_are_averaged(way):
    """As in a step under automatic optimization, whose one backward reaches them all."""
    assert_parts(steps.Together, way, TWICE, factor=0.5, call="all")


# What step, with which call=, is refused with which words.
REFUSED = [
    (steps.OneByOne, -1, r"call\b.*-1"),
    (steps.OneByOne, -2, r"call\b.*-2"),
    (steps.MicroBatches, -1, r"call\b.*-1"),
    (steps.Manual, 1, r"call\b.*1"),
    (steps.MicroBatches, 5, r"call\b.*5"),
    (steps.CallsFirst, 2, r"call\b.*2"),
    (steps.CallsFirst, -3, r"call\b.*-3"),
    (steps.Adversarial, 0, r"call\b.*0"),
    (steps.Adversarial, "all", r"call\b.*all"),
    (steps.Unseen, "first", r"manual_backward"),
    (steps.Unseen, "all", r"manual_backward"),
    (steps.Unseen, 0, r"manual_backward"),
]


@pytest.mark.parametrize(
    ("make", "call", "text"), REFUSED, ids=[f"{make.__name__}, {call}" for make, call, _ in REFUSED]
)
def test_a_call_that_cannot_have_its_term_is_an_error(make, call, text):
    with pytest.raises(ValueError, match=text):
        fit_one_step(make(), batch(), sobolev(Way(), Spy(), call=call))


class Sometimes(steps.Manual):
    """Its second batch is trained without a backward that anybody can see."""

    def training_step(self, batch, batch_idx):
        self.steps = getattr(self, "steps", 0) + 1
        super().training_step(batch, batch_idx)

    def passes(self, x, y):
        loss = self.loss(x, y)
        if self.steps == 1:
            self.manual_backward(loss)
        else:
            loss.backward()


def test_one_step_without_its_term_is_an_error_though_others_had_theirs():
    module, used = Sometimes(), sobolev(Way(), Spy())
    with pytest.raises(ValueError, match=r"manual_backward"):
        fit_one_step(module, batch(), used, max_epochs=2)
    assert module.steps == 2


# Steps whose weights move between two passes: the whole update is compared.


def descended(module, way):
    """Return what a step of plain descent on loss and term subtracts, of a fresh module."""
    x, y = batch()
    value = reference.term(way.kind, module.net, target, x)
    return list(reference.gradient(module.loss(x, y) + value, module).values())


@ways
def test_both_passes_of_sam_have_their_term(way):
    module, spy = steps.Sharpness(), Spy()
    before = [p.detach().clone() for p in module.parameters()]
    fit_one_step(module, batch(), sobolev(way, spy))
    found = [b - p.detach() for b, p in zip(before, module.parameters(), strict=True)]
    other = steps.Sharpness()
    other.shift(descended(other, way), other.radius)
    expected = descended(other, way)
    torch.testing.assert_close(found, expected, rtol=10 * way.rtol, atol=1e-7)


def test_each_step_has_random_directions_of_its_own():
    teacher, module, other = Overheard(), steps.Manual(), steps.Manual()
    x, y = batch()
    fit(module, as_loader([batch()] * 3), exact(teacher, term=RANDOM, module="net"))
    assert_all_differ(teacher.along)
    for u in teacher.along:
        loss = mse_loss(other.net(x), y) + along(u, "cotangent", other.net, x)
        for parameter, gradient in reference.gradient(loss, other).items():
            other.get_parameter(parameter).data.sub_(gradient)
    found, expected = ([p.detach() for p in m.parameters()] for m in (module, other))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@ways
def test_each_update_of_a_step_has_its_term(way):
    module, other = steps.Updates(), steps.Updates()
    fit_one_step(module, batch(), sobolev(way, Spy()))
    for _ in range(3):
        for parameter, gradient in zip(other.parameters(), descended(other, way), strict=True):
            parameter.data.sub_(0.1 * gradient)
    found, expected = ([p.detach() for p in m.parameters()] for m in (module, other))
    torch.testing.assert_close(found, expected, rtol=10 * way.rtol, atol=1e-7)
