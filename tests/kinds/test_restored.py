"""After a fit, or a crash, the module, its hooks and torch's settings are those before it."""

import lightning.pytorch as L
import pytest
import torch

from tests.kinds import _manual as steps
from tests.kinds._measure import FUNC, Spy, Step, Way, batch, in_turn, sobolev
from tests.kinds._state import state
from tests.plugin._trainers import fit_one_step

WAYS = {
    "tape": Way(),
    "func": Way(options=FUNC),
    "half of the rows": Way("order_2", rows=0.5),
    "whole module": Way(options={"module": None}),
    "half precision": Way(precision="bf16-mixed"),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class Plain(Step):
    def forward(self, x):
        return self.net(x)

    def call(self, x):
        return self(x)


class Hooked(Plain):
    """Has hooks and methods of its own on the instance, by its user's hand."""

    def __init__(self):
        super().__init__()
        self.net.register_forward_pre_hook(lambda _, args: args)
        self.net.register_forward_hook(lambda *_: None)
        self.net[0].register_forward_hook(lambda *_: None, always_call=True)
        self.net[2].weight.register_hook(lambda g: g)
        self.net[1].forward = lambda x: torch.tanh(x)
        own = self.training_step
        self.training_step = lambda batch, batch_idx: own(batch, batch_idx)


class FrozenPart(Plain):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)


def run(module, way, *callbacks, **options):
    data = batch() if way.precision == "64-true" else [part.float() for part in batch()]
    fit_one_step(module, data, *callbacks, precision=way.precision, **options)


@ways
@pytest.mark.parametrize("make", [Plain, Hooked, FrozenPart, steps.MicroBatches])
def test_a_fit_leaves_nothing(make, way):
    if make is steps.MicroBatches and way.options.get("module", "net") is None:
        way = Way()
    module = make() if way.precision == "64-true" else make().float()
    before = state(module)
    used = sobolev(way, Spy())
    for _ in range(2):
        run(module, way, used)
        assert state(module) == before


class CrashError(Exception):
    """What a user's code raises."""


def crash(*_, **__):
    raise CrashError


def in_forward(module, spy):
    del spy
    module.net[2].forward = crash


def in_step(module, spy):
    del spy
    module.configure_gradient_clipping = crash


def behind_the_call(module, spy):
    def training_step(batch, batch_idx):
        del batch_idx
        module(batch[0])
        raise CrashError

    del spy
    module.training_step = training_step


def in_backward(module, spy):
    del spy
    module.net[0].weight.register_hook(crash)


def in_teacher(module, spy):
    del module
    spy.function = crash


def in_zero_grad(module, spy):
    del spy
    module.optimizer_zero_grad = crash


def in_a_nested_call(module, spy):
    del spy
    module.net[1].register_forward_pre_hook(crash)


CRASHES = [
    in_forward,
    in_step,
    behind_the_call,
    in_backward,
    in_teacher,
    in_zero_grad,
    in_a_nested_call,
]


@pytest.mark.parametrize(("breaks", "name"), in_turn(CRASHES, WAYS, each=3))
def test_a_crash_leaves_nothing(breaks, name):
    way = WAYS[name]
    module, spy = Plain() if way.precision == "64-true" else Plain().float(), Spy()
    breaks(module, spy)
    before = state(module)
    with pytest.raises(CrashError):
        run(module, way, sobolev(way, spy))
    assert state(module) == before


class Interrupts(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        raise KeyboardInterrupt


@ways
def test_an_interrupt_leaves_nothing(way):
    module = Plain() if way.precision == "64-true" else Plain().float()
    before = state(module)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(module, way, sobolev(way, Spy()), Interrupts())
    assert state(module) == before


def test_a_callback_that_is_refused_takes_none_of_another_with_it():
    """The first one is installed when the second one turns out to be misconfigured."""
    module = Plain()
    before = state(module)
    used = [sobolev(Way(), Spy(), name="a"), sobolev(Way(), Spy(), name="b", module="nothing")]
    for callbacks in (used, used[::-1]):
        with pytest.raises(ValueError, match=r"nothing"):
            fit_one_step(module, batch(), *callbacks)
        assert state(module) == before
