"""A LightningModule may hold its teacher; several callbacks may teach one student."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher
from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    exact,
    fit,
    frobenius,
    mlp,
    numbers,
    refuses,
    share,
    slope,
    target,
    weights,
)

# A teacher may be in eval mode, which Lightning remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")

BATCHES = [(X, Y), (numbers(6, 3, seed=8), Y)]


class Distils(Step):
    """Classic distillation: a frozen network in the module gives the values."""

    def __init__(self, teacher=None):
        super().__init__()
        self.teacher = mlp(seed=7).requires_grad_(False) if teacher is None else teacher

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            wanted = self.teacher(batch[0])
        return mse_loss(self.net(batch[0]), wanted)


def held(make, batches, callback_of, **flags):
    """What the student's weights, and they alone, lost to the term."""
    taught, plain = make(), make()
    fit(taught, batches, callback_of(taught), **flags)
    fit(plain, batches, **flags)
    assert_close(taught.teacher.state_dict(), plain.teacher.state_dict(), rtol=0, atol=0)
    parts = zip(plain.net.parameters(), taught.net.parameters(), strict=True)
    return torch.cat([(p - q).detach().flatten() for p, q in parts])


@pytest.mark.parametrize("doctor", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_a_module_may_hold_its_frozen_teacher(side, doctor):
    found = held(Distils, [(X, Y)], lambda module: exact(
        module.teacher, doctor=doctor, term={"side": side}))  # fmt: skip
    net = mlp()
    assert_is(found, slope(frobenius(net, mlp(seed=7), X), net))


class Careless(Distils):
    """Calls the frozen teacher with gradients enabled: it is no second student."""

    def training_step(self, batch, batch_idx):
        wanted = self.teacher(batch[0])
        return mse_loss(self.net(batch[0]), wanted)


@pytest.mark.parametrize("module", [None, "net"])
def test_a_frozen_child_is_not_taken_for_the_student(module):
    found = held(Careless, [(X, Y)], lambda held: exact(held.teacher, module=module))
    net = mlp()
    assert_is(found, slope(frobenius(net, mlp(seed=7), X), net))


class Encoded(Step):
    """A frozen encoder, called before the head that is trained."""

    def __init__(self):
        super().__init__()
        self.net, self.encoder = mlp(), mlp(outputs=3, seed=5).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(self.encoder(batch[0])), batch[1])


def test_a_frozen_encoder_is_not_taken_for_the_student():
    found = share(Encoded, [(X, Y)], exact(mlp(seed=7)))
    net, encoded = mlp(), mlp(outputs=3, seed=5)(X).detach()
    assert_is(found[: len(weights(net))], slope(frobenius(net, mlp(seed=7), encoded), net))


class MeanTeacher(Distils):
    """The teacher is a running mean of the student and moves in every step."""

    def __init__(self):
        super().__init__(mlp(seed=7).requires_grad_(False))

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for mean, own in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mean.mul_(0.5).add_(own, alpha=0.5)
        return super().training_step(batch, batch_idx)


def test_a_mean_teacher_is_followed():
    module = MeanTeacher()
    fit(module, BATCHES, exact(module.teacher, term={"weight": 0.1}))
    net, mean = mlp(), mlp(seed=7).requires_grad_(False)
    for x, _ in BATCHES:
        with torch.no_grad():
            for p, q in zip(mean.parameters(), net.parameters(), strict=True):
                p.mul_(0.5).add_(q, alpha=0.5)
        loss = mse_loss(net(x), mean(x)) + 0.1 * frobenius(net, mean, x)
        gradient = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradient, strict=True):
                p.sub_(g)
    assert_close(module.net.state_dict(), net.state_dict(), rtol=1e-10, atol=1e-12)


class Byol(Distils):
    """The teacher begins as a copy of the student, and is trainable until it is frozen."""

    def __init__(self):
        super().__init__(mlp(seed=3))
        self.net = copy.deepcopy(self.teacher)
        self.teacher.requires_grad_(False)
        with torch.no_grad():
            self.net[0].weight.add_(0.1)


def test_a_copy_of_the_student_in_the_module_is_no_student():
    found = held(Byol, [(X, Y)], lambda module: exact(module.teacher))
    net = Byol().net
    assert_is(found, slope(frobenius(net, mlp(seed=3), X), net))


class Noted(nn.Module):
    """Notes in which mode and how often it was called, and has a batch norm to be left alone."""

    def __init__(self):
        super().__init__()
        self.body, self.modes = mlp(seed=7), []
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, x):
        self.modes.append((torch.is_grad_enabled(), self.training))
        return self.body(self.norm(x))


@pytest.mark.parametrize("mode", [True, False])
def test_a_held_teacher_has_its_own_mode_and_statistics_behind_each_question(mode):
    teacher = Noted().requires_grad_(False)
    module, seen = Distils(teacher), []

    class Looks(Distils):
        def training_step(self, batch, batch_idx):
            self.teacher.train(mode)
            with torch.no_grad():
                self.teacher(batch[0])
            return mse_loss(self.net(batch[0]), batch[1])

        def on_train_batch_end(self, *_):
            seen.append([part.training for part in self.teacher.modules()])

    module = Looks(teacher)
    fit(module, BATCHES, exact(NetworkTeacher(teacher)))
    assert all(all(part == mode for part in modes) for modes in seen)
    assert teacher.norm.num_batches_tracked == (len(BATCHES) if mode else 0)
    asked = [training for grad, training in teacher.modes if grad]
    assert asked
    assert not any(asked), "the teacher answers in eval mode"


SHARING = {
    "the student": lambda net: net,
    "one that holds the student": lambda net: nn.Sequential(net, nn.Identity()),
    "one with a layer of the student": lambda net: nn.Sequential(net[0], mlp(inputs=5)),
}


@pytest.mark.parametrize("name", SHARING)
def test_a_teacher_that_is_the_student_is_refused(name):
    net = mlp()
    refuses(Step(net), [(X, Y)], exact(SHARING[name](net)), "teacher.*student|student.*teacher")


@pytest.mark.parametrize("sides", [SIDES, SIDES[:1] * 2])
def test_two_callbacks_teach_one_student_the_sum_of_both(sides):
    callbacks = [
        exact(teacher, term={"side": side, "name": name, "weight": weight})
        for teacher, side, name, weight in zip(
            (target, mlp(seed=7)), sides, ("a", "b"), (1.0, 0.5), strict=True
        )
    ]
    net = mlp()
    expected = frobenius(net, target, X) + 0.5 * frobenius(net, mlp(seed=7), X)
    assert_is(share(Step, [(X, Y)], *callbacks), slope(expected, net))


def test_two_callbacks_with_terms_of_one_name_are_refused():
    with pytest.raises(ValueError, match="name"):
        fit(Step(), [(X, Y)], exact(), exact(mlp(seed=7), wrt=0))
