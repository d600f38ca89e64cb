"""Under manual optimization: no term in validation, two callbacks at once, what a user is told."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from tests.kinds import _manual as steps
from tests.kinds import _reference as reference
from tests.kinds._by_hand import lines_for_the_user
from tests.kinds._measure import (
    WAYS,
    Spy,
    Step,
    Way,
    assert_updates,
    batch,
    chosen,
    numbers,
    other,
    sobolev,
    target,
    update,
)
from tests.plugin._trainers import as_loader, fit_one_step, trainer

X = batch()[0]
FEW = {name: WAYS[name] for name in ("tape", "func", "half of the rows", "order 2, func")}
ways = pytest.mark.parametrize("way", FEW.values(), ids=FEW)


class ValidatesByItsSteps(steps.Manual):
    """Its validation hands a loss to manual_backward, too, and keeps the gradient."""

    lr = 0.0

    def __init__(self):
        super().__init__()
        self.seen = []

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            self.zero_grad()
            self.passes(*batch)
        self.seen.append([p.grad.clone() for p in self.parameters()])
        self.zero_grad()


class ValidatesAutomatically(Step):
    def __init__(self):
        super().__init__()
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            loss = self.training_step(batch, batch_idx)
            gradient = torch.autograd.grad(loss, list(self.parameters()))
        self.seen.append([loss.detach(), *gradient])


@ways
@pytest.mark.parametrize("make", [ValidatesByItsSteps, ValidatesAutomatically])
def test_validation_has_no_term(make, way):
    module, spy = make(), Spy()
    used = trainer(sobolev(way, spy), num_sanity_val_steps=1, max_epochs=2, inference_mode=False)
    held_out = [numbers(4, 3, seed=8), numbers(4, 2, seed=9)]
    used.fit(module, as_loader([batch()]), as_loader([held_out]))
    plain = make()
    loss = mse_loss(plain.net(held_out[0]), held_out[1])
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    assert len(module.seen) == 3
    for seen in module.seen:
        assert_close(seen[-4:], list(expected), rtol=1e-12, atol=0)
    for asked in spy.asked:
        chosen(asked, X)


class Validates(steps.Manual):
    """Calls its student in validation, and then trains without handing a loss to anybody."""

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            self.loss(*batch)


def test_a_call_in_validation_is_not_one_of_the_next_step():
    def make():
        return Validates()

    spy, modules = Spy(), []
    for callbacks in ([sobolev(Way(), spy, call=0)], []):
        modules.append(make())
        used = trainer(*callbacks, num_sanity_val_steps=1)
        used.fit(modules[-1], as_loader([batch()]), as_loader([batch(size=4)]))
    taught, plain = (dict(module.named_parameters()) for module in modules)
    found = {name: (plain[name] - taught[name]).detach() for name in plain}
    module = make()
    value = reference.term("vjp", module.net, target, X)
    assert_updates(found, reference.gradient(value, module), 1e-7)


# Two callbacks, each with a teacher and a term of its own

PASSES = {
    Step: [X],
    steps.Manual: [X],
    steps.MicroBatches: list(X.chunk(3)),
    steps.OneByOne: [X, 3.0 * X],
    steps.Heads: [X],
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("make", PASSES)
def test_two_callbacks_teach_one_student_two_things(make, reverse):
    first, second = Spy(), Spy(other)
    both = [
        sobolev(WAYS["tape"], first, name="first"),
        sobolev(WAYS["tape, tangents"], second, name="second", weight=0.5),
    ]
    found = update(make, batch, *(both[::-1] if reverse else both))
    module, value = make(), 0.0
    for part in PASSES[make]:
        value = value + reference.term("vjp", module.net, target, part)
        value = value + 0.5 * reference.term("jvp", module.net, other, part)
    assert_updates(found, reference.gradient(value, module), 1e-5)
    assert len(first.asked) == len(second.asked) == len(PASSES[make])


@pytest.mark.parametrize("calls", [(0, 1), (1, 0), ("first", "all"), (1, "first")])
def test_two_callbacks_may_choose_different_calls(calls):
    spies = [Spy(), Spy(other)]
    used = [
        sobolev(WAYS["tape"], spy, name=name, call=call)
        for spy, name, call in zip(spies, ("a", "b"), calls, strict=True)
    ]
    found = update(steps.OneByOne, batch, *used)
    module, value = steps.OneByOne(), 0.0
    for call, function in zip(calls, (target, other), strict=True):
        for number, part in enumerate(PASSES[steps.OneByOne]):
            if call in ("first", "all", number):
                value = value + reference.term("vjp", module.net, function, part)
    assert_updates(found, reference.gradient(value, module), 1e-7)


# What a user of several backward calls is told


def told(module, **options):
    with lines_for_the_user() as lines:
        fit_one_step(module, batch(), sobolev(Way(), Spy(), **options), max_epochs=3)
    return [line for line in lines if "manual_scale" in line]


@pytest.mark.parametrize("make", [steps.MicroBatches, steps.OneByOne, steps.Sharpness])
def test_several_backward_calls_are_spoken_of_once(make):
    assert len(told(make())) == 1


@pytest.mark.parametrize(
    ("make", "options"), [(steps.Manual, {}), (steps.Averaged, {"manual_scale": 1 / 3}), (Step, {})]
)
def test_nothing_is_said_of_one_backward_call_or_a_scale_that_was_chosen(make, options):
    assert told(make(), **options) == []


def test_the_total_of_a_manual_step_is_logged():
    module, callback = steps.Manual(), sobolev(Way(), Spy(), weight=0.5)
    x, *_ = batch()
    expected = 0.5 * float(reference.term("vjp", module.net, target, x).detach())
    fit_one_step(module, batch(), callback, precision="64-true")
    logged = {key: float(value) for key, value in module.trainer.callback_metrics.items()}
    assert abs(logged["train/sobolev/total"] - expected) < 1e-9 * expected
