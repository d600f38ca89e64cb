"""The term is of the output and the input that the call had, not of what the step made of them."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from tests.kinds._measure import (
    MAIN,
    Spy,
    Step,
    Way,
    assert_taught,
    batch,
    chosen,
    in_turn,
    seeded,
    sobolev,
    update,
)

EVERY = {**MAIN, "value": Way("value"), "value, half of the rows": Way("value", rows=0.5)}
ways = pytest.mark.parametrize("way", EVERY.values(), ids=EVERY)


def triples(y):
    y *= 3.0


def masks(y):
    y[:, 0] = -1e9


def clamps(y):
    y.clamp_(-0.1, 0.1)


def grows(y):
    y.add_(torch.linspace(0.0, 1.0, y.numel()).view_as(y).to(y) * y)


def zeroes_under_no_grad(y):
    with torch.no_grad():
        y.zero_()


CHANGES = [triples, masks, clamps, grows, zeroes_under_no_grad]


class Tensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def hold(self, y):
        return y

    def forward(self, x):
        return self.hold(self.body(x))


@dataclass
class Record:
    logits: torch.Tensor
    name: str = "record"


class Fields(NamedTuple):
    logits: torch.Tensor
    rest: torch.Tensor


class Dict(Tensor):
    def hold(self, y):
        return {"logits": y, "norm": y.detach().norm()}


class Nested(Tensor):
    def hold(self, y):
        return {"heads": [{"logits": y}]}


class Dataclass(Tensor):
    def hold(self, y):
        return Record(y)


class Named(Tensor):
    def hold(self, y):
        return Fields(y, y.detach())


def taken(output):
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Record):
        return output.logits
    if isinstance(output, dict):
        return output["logits"] if "logits" in output else taken(output["heads"][0])
    return output[0]


def changing(net, change):
    class Changes(Step):
        def __init__(self):
            super().__init__(seeded(net))

        def call(self, x):
            y = taken(self.net(x))
            change(y)
            return 1e-3 * y

    return Changes


def body(module, x):
    return module.net.body(x)


@pytest.mark.parametrize(("change", "name"), in_turn(CHANGES, EVERY, each=4))
def test_an_output_that_is_changed_in_place_is_matched_as_it_was(change, name):
    assert_taught(changing(Tensor, change), EVERY[name], body)


@pytest.mark.parametrize(("net", "name"), in_turn([Dict, Nested, Dataclass, Named], EVERY, each=4))
def test_an_output_is_matched_as_it_was_wherever_it_is_held(net, name):
    assert_taught(changing(net, triples), EVERY[name], body)


class Replaces(Step):
    """Puts another tensor in the output's place, and takes out what it does not need."""

    def __init__(self):
        super().__init__(seeded(Dict))

    def call(self, x):
        output = self.net(x)
        output["logits"] = 5.0 * output["logits"]
        output.pop("norm")
        return output.pop("logits")


@ways
def test_an_output_that_is_replaced_in_its_dict_is_matched_as_it_was(way):
    assert_taught(Replaces, way, body)


class Shifted(Tensor):
    """Does not keep its input for the backward pass, so that a step may write into it."""

    def forward(self, x):
        return self.body(x - 1.0)


class Integrates(Step):
    """One step of Euler's method, in place."""

    def __init__(self):
        super().__init__(seeded(Shifted))

    def call(self, x):
        x = x.clone()
        y = self.net(x)
        x[:, :2] += 0.1 * y
        return x[:, :2]


class Overwrites(Integrates):
    def call(self, x):
        x = x.clone()
        y = self.net(x)
        x.fill_(7.0)
        return y


class Reads(Integrates):
    """The memory of a data loader that is written anew while the step runs."""

    def call(self, x):
        buffer = x.clone()
        y = self.net(buffer.view(-1, 3))
        buffer.data.fill_(7.0)
        return y


@ways
@pytest.mark.parametrize("make", [Integrates, Overwrites, Reads])
def test_an_input_that_is_changed_in_place_is_matched_where_it_was(make, way):
    assert_taught(make, way)


class Rolls(Integrates):
    """Two steps of Euler's method in one tensor: each call has an input of its own."""

    def call(self, x):
        x = x.clone()
        for _ in range(2):
            y = self.net(x)
            x += 1.0
        return y


@ways
@pytest.mark.parametrize("call", [0, 1])
def test_calls_that_share_the_memory_of_their_input_keep_their_points(call, way):
    assert_taught(Rolls, way, points=batch()[0] + call, call=call)


@ways
def test_the_value_loss_is_of_what_the_step_made_of_the_output(way):
    """What the package keeps for itself must not reach the user's own loss."""
    losses = []

    class Looks(changing(Tensor, triples)):
        def training_step(self, batch, batch_idx):
            loss = mse_loss(self.call(batch[0]), batch[1])
            losses.append(loss.detach())
            return loss

    spy = Spy()
    update(Looks, batch, sobolev(way, spy), precision=way.precision)
    taught, plain = losses
    assert torch.equal(taught, plain)
    chosen(spy.asked[-1], batch()[0])
