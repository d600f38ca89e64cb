"""A replay has the arguments of the observed call, whatever the step did to them later."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.kinds._measure import MAIN, Step, assert_taught, batch, in_turn, numbers, seeded

ways = pytest.mark.parametrize("way", MAIN.values(), ids=MAIN)


def conditioned(size=6):
    return batch(numbers(size, 3, seed=5))


class Shifted(nn.Module):
    """Adds an argument to the input: nothing that autograd keeps for the backward pass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x, shift, scale=1.0):
        if isinstance(shift, dict):
            shift = shift["shift"]
        elif isinstance(shift, list):
            shift = shift[0]
        elif isinstance(shift, Condition):
            shift = shift.shift
        return self.body(x + shift) * scale


@dataclass
class Condition:
    shift: torch.Tensor


class Conditioned(Step):
    def __init__(self):
        super().__init__(seeded(Shifted))


class ChangesTensor(Conditioned):
    def call(self, x, shift):
        y = self.net(x, shift)
        shift.zero_()
        return y


class ChangesKeyword(Conditioned):
    def call(self, x, shift):
        y = self.net(x, shift=shift)
        shift.mul_(-1.0)
        return y


class ChangesDict(Conditioned):
    def call(self, x, shift):
        given = {"shift": shift}
        y = self.net(x, given)
        given["shift"] = torch.zeros_like(shift)
        return y


class ChangesInsideDict(Conditioned):
    def call(self, x, shift):
        given = {"shift": shift}
        y = self.net(x, given)
        given["shift"].zero_()
        return y


class ChangesList(Conditioned):
    def call(self, x, shift):
        given = [shift]
        y = self.net(x, given)
        given.clear()
        return y


class ChangesRecord(Conditioned):
    def call(self, x, shift):
        given = Condition(shift)
        y = self.net(x, given)
        given.shift = None
        return y


class ChangesInput(Conditioned):
    """Writes the next batch into the memory of this one, as a pinned buffer is used again."""

    def __init__(self):
        super().__init__()
        self.net = seeded(Clones)

    def call(self, x, shift):
        y = self.net(x, shift)
        with torch.no_grad():
            x.zero_()
        return y


class Clones(Shifted):
    def forward(self, x, shift):
        return super().forward(x.sin(), shift)


CHANGES = [
    ChangesTensor,
    ChangesKeyword,
    ChangesDict,
    ChangesInsideDict,
    ChangesList,
    ChangesRecord,
    ChangesInput,
]


def function(module, x, shift):
    return module.net(x, shift)


@pytest.mark.parametrize(("make", "name"), in_turn(CHANGES, MAIN, each=3))
def test_arguments_are_those_of_the_call(make, name):
    assert_taught(make, MAIN[name], function, data=conditioned)


class CallsTwice(Conditioned):
    """Its arguments are one object with other contents in each call."""

    def call(self, x, shift):
        given = {"shift": shift}
        y = self.net(x, given)
        given["shift"] = 2.0 * shift
        self.net(x, given)
        return y


@ways
@pytest.mark.parametrize("call", [0, 1])
def test_calls_that_share_a_container_have_its_contents_of_their_time(call, way):
    factor = (1.0, 2.0)[call]
    assert_taught(
        CallsTwice, way, lambda m, x, s: m.net(x, factor * s), data=conditioned, call=call
    )
