"""A replay runs in the mode of the observed call, and leaves the mode of the step behind."""

import pytest
from torch import nn

from tests.kinds._measure import (
    MAIN,
    WAYS,
    Spy,
    Step,
    Way,
    assert_taught,
    batch,
    in_turn,
    moved,
    seeded,
    sobolev,
)


class Doubles(nn.Module):
    """Its value tells the mode: twice the input while it trains."""

    def forward(self, x):
        return 2.0 * x if self.training else x


def plain_net():
    return nn.Sequential(nn.Linear(3, 4), Doubles(), nn.Tanh(), nn.Dropout(0.0), nn.Linear(4, 2))


def noisy_net():
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.BatchNorm1d(4, momentum=0.0),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(4, 2),
    )


class CalledInEval(Step):
    make_net = staticmethod(plain_net)

    def __init__(self):
        super().__init__(seeded(self.make_net))
        if isinstance(self.net[1], nn.BatchNorm1d):  # not those of any batch
            self.net[1].running_mean.fill_(0.2)
            self.net[1].running_var.fill_(2.0)

    def call(self, x):
        self.net.eval()
        y = self.net(x)
        self.net.train()
        return y


class PartsInEval(CalledInEval):
    """The usual way to freeze a norm: single submodules in eval mode, the rest trains."""

    def call(self, x):
        parts = self.net[1], self.net[3]
        for part in parts:
            part.eval()
        y = self.net(x)
        for part in parts:
            part.train()
        return y


class LeftInEval(CalledInEval):
    def call(self, x):
        self.net.eval()
        return self.net(x)


class NoisyInEval(CalledInEval):
    make_net = staticmethod(noisy_net)


class NoisyPartsInEval(PartsInEval):
    make_net = staticmethod(noisy_net)


class CalledInTrain(CalledInEval):
    def call(self, x):
        self.net.train()
        y = self.net(x)
        self.net.eval()
        return y


# Not of its own layers: torch.func refuses batch norms that train when the fit begins.
PLAIN = [(name, make) for name in MAIN for make in (CalledInEval, PartsInEval, LeftInEval)]
NOISY = [(n, make) for n in MAIN if "func" not in n for make in (NoisyInEval, NoisyPartsInEval)]


MODES = [CalledInEval, PartsInEval, LeftInEval, CalledInTrain]


def prepare(module):
    module.eval()


@pytest.mark.parametrize(("name", "make"), PLAIN + NOISY)
def test_a_call_in_eval_mode_is_taught_in_eval_mode(make, name):
    assert_taught(make, WAYS[name], prepare=prepare)


@pytest.mark.parametrize("name", MAIN)
def test_a_call_in_train_mode_is_taught_in_train_mode(name):
    assert_taught(CalledInTrain, WAYS[name])


@pytest.mark.parametrize(("make", "name"), in_turn(MODES, MAIN, each=3))
def test_the_modes_after_the_step_are_those_without_the_term(make, name):
    modes = []
    for callbacks in ([], [sobolev(WAYS[name], Spy())]):
        made = make()
        moved(lambda made=made: made, batch, *callbacks, precision=WAYS[name].precision)
        modes.append([part.training for part in made.modules()])
    assert modes[0] == modes[1]


class Trains(NoisyInEval):
    def call(self, x):
        self.net[3].eval()
        return self.net(x)


@pytest.mark.parametrize("kind", ["vjp", "jvp", "order_2"])
@pytest.mark.parametrize("rows", [1.0, 0.5])
def test_batch_norm_aside_takes_the_running_statistics_in_a_call_that_trains(rows, kind):
    assert_taught(Trains, Way(kind, rows, {"batch_norm": "eval"}), prepare=prepare)
