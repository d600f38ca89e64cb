"""The callback, the mixin and a loop written by hand train alike, to rounding error."""

import copy

import pytest
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevMixin, SobolevSpec, SobolevTerm
from tests.plugin._loops import train_by_hand
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, weights

STEPS = 20

TERMS = {
    "order 1 cotangent": {"order": 1, "side": "cotangent"},
    "order 1 tangent": {"order": 1, "side": "tangent", "projection": "gaussian"},
    "order 2": {"order": 2, "num_projections": 2, "projection": "rademacher"},
}


class MixinRegressor(SobolevMixin, Regressor):
    """Brings the callback itself."""

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


@pytest.mark.parametrize("normalize", ["target", "none"])
@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_callback_equals_the_hand_written_loop(kind, engine, normalize, data):
    term = term_of(kind, normalize=normalize)
    module = Regressor()
    fit(module, data, SobolevCallback(**callback_options(term, engine)))
    assert_close(weights(module), expected_weights(term, data), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_mixin_equals_the_hand_written_loop(kind, engine, data):
    term = term_of(kind)
    module = MixinRegressor()
    module.options = callback_options(term, engine)
    fit(module, data)
    assert_close(weights(module), expected_weights(term, data), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_manual_optimization_equals_the_hand_written_loop(kind, engine, data):
    term = term_of(kind)
    module = ManualRegressor()
    fit(module, data, SobolevCallback(**callback_options(term, engine)))
    assert_close(weights(module), expected_weights(term, data), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_accumulated_gradients_equal_the_hand_written_loop(kind, engine, data):
    term = term_of(kind)
    module = Regressor()
    callback = SobolevCallback(**callback_options(term, engine))
    fit(module, data, callback, accumulate_grad_batches=2)
    expected = expected_weights(term, data, accumulate=2)
    assert_close(weights(module), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_a_fraction_of_the_rows_equals_the_hand_written_loop(kind, engine, data):
    term = term_of(kind, rows=0.5)
    module = Regressor()
    fit(module, data, SobolevCallback(**callback_options(term, engine)))
    assert_close(weights(module), expected_weights(term, data), rtol=1e-12, atol=1e-12)


def test_the_term_changes_the_weights(data):
    plain, taught = Regressor(), Regressor()
    fit(plain, data)
    fit(taught, data, SobolevCallback(**callback_options(term_of("order 1 cotangent"), "tape")))
    assert (weights(plain) - weights(taught)).norm() > 1e-2


def test_the_callback_leaves_its_teacher_as_it_was(data):
    teacher = mlp(seed=7)
    before = copy.deepcopy(teacher.state_dict())
    fit(Regressor(), data, SobolevCallback(teacher, doctor=False))
    assert_close(dict(teacher.state_dict()), dict(before), rtol=0, atol=0)
