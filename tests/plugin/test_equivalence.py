"""The callback, the mixin and a loop written by hand train alike, to rounding error."""

import copy
from functools import partial

import pytest
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevMixin, SobolevSpec, SobolevTerm
from tests.plugin._loops import train_by_hand
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, weights

STEPS = 8

TERMS = {
    "order 1 cotangent": {"order": 1, "side": "cotangent"},
    "order 1 tangent": {"order": 1, "side": "tangent", "projection": "gaussian"},
    "order 2": {"order": 2, "num_projections": 2, "projection": "rademacher"},
}


class MixinRegressor(SobolevMixin, Regressor):
    options: dict

    def configure_sobolev(self):
        return SobolevCallback(**self.options)


@pytest.fixture
def data():
    return points(size=8 * STEPS)


def term_of(kind, **changes):
    return SobolevTerm(**{"weight": 0.1, **TERMS[kind], **changes})


def expected_weights(term, data, **changes):
    net = mlp()
    train_by_hand(net, mlp(seed=7), data, term, seed=3, **changes)
    return weights(net)


def callback_options(term, engine):
    spec = SobolevSpec(terms=[term])
    return {"teacher": mlp(seed=7), "spec": spec, "engine": engine, "seed": 3, "doctor": False}


def mixin(options):
    module = MixinRegressor()
    module.options = options
    return module, []


def callback(options, student=Regressor):
    return student(), [SobolevCallback(**options)]


# By name: who is trained, what is changed in the term, what in trainer and loop.
WAYS = {
    "callback": (callback, {}, {}),
    "callback, raw": (callback, {"normalize": "none"}, {}),
    "mixin": (mixin, {}, {}),
    "manual optimization": (partial(callback, student=ManualRegressor), {}, {}),
    "accumulated gradients": (callback, {}, {"accumulate": 2}),
    "a fraction of the rows": (callback, {"rows": 0.5}, {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_training_equals_the_hand_written_loop(kind, engine, way, data):
    make, changes, loop = WAYS[way]
    term = term_of(kind, **changes)
    module, callbacks = make(callback_options(term, engine))
    options = {"accumulate_grad_batches": 2} if loop else {}
    fit(module, data, *callbacks, **options)
    assert_close(weights(module), expected_weights(term, data, **loop), rtol=1e-12, atol=1e-12)


def test_the_callback_leaves_its_teacher_as_it_was(data):
    teacher = mlp(seed=7)
    before = copy.deepcopy(teacher.state_dict())
    fit(Regressor(), data, SobolevCallback(teacher, doctor=False))
    assert_close(dict(teacher.state_dict()), dict(before), rtol=0, atol=0)
