"""Copies of a module in training carry no trace of the plugin, and averages work."""

import copy
import functools
import pickle

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch.testing import assert_close

from tests.plugin._loops import by_hand
from tests.plugin._students import Regressor, callback
from tests.plugin._trainers import fit, points, weights


class Copies(L.Callback):
    def __init__(self, copier):
        self.copier = copier

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.made = self.copier(pl_module)
            self.at = weights(pl_module)


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copier", [copy.deepcopy, by_pickle])
def test_a_copy_made_while_training_is_an_ordinary_module(copier):
    module, copies = Regressor(), Copies(copier)
    fit(module, points(), callback(), copies)
    twin = copies.made
    assert_close(weights(twin), copies.at, rtol=0, atol=0)
    final = weights(module)
    fit(twin, points())
    assert_close(weights(module), final, rtol=0, atol=0)  # no link to the original
    plain = Regressor()
    torch.nn.utils.vector_to_parameters(copies.at, plain.parameters())
    fit(plain, points())
    assert_close(weights(twin), weights(plain), rtol=0, atol=0)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("average", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.5)])
def test_averaged_weights_are_those_of_the_taught_student(average, first):
    """Lightning's averaging copies the module at setup, before or after ours is set up."""

    class Keeps(L.Callback):
        def __init__(self):
            self.path = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.path.append(weights(pl_module))

    module, averaging, keeps = Regressor(), average(), Keeps()
    callbacks = [callback(), averaging] if first else [averaging, callback()]
    fit(module, points(), keeps, *callbacks)
    expected = keeps.path[0]
    for number, later in enumerate(keeps.path[1:], start=1):
        share = 0.5 if isinstance(averaging, EMAWeightAveraging) else 1 / (number + 1)
        expected = expected + share * (later - expected)
    assert_close(keeps.path[-1], by_hand())
    assert_close(weights(module), expected)


class CopiesInside(Regressor):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.twins = [copy.deepcopy(self), by_pickle(self)]
        self.nets = [copy.deepcopy(self.net), by_pickle(self.net)]
        return loss


@pytest.mark.parametrize("module", [None, "net"])
def test_a_copy_made_inside_a_step_has_no_link_to_the_original(module):
    original = CopiesInside()
    fit(original, points(), callback(module=module, doctor=False), limit_train_batches=1)
    x = torch.ones(1, 3).double()
    for part in [*(twin.net for twin in original.twins), *original.nets]:
        expected = part(x)
        with torch.no_grad():
            original.net[2].bias.add_(1.0)
        assert_close(part(x), expected, rtol=0, atol=0)
        part[2].bias.data.add_(1.0)
        assert_close(part(x), expected + 1.0)
    for twin in original.twins:
        assert_close(twin(x), twin.net(x), rtol=0, atol=0)


def decorated(method):
    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        return method(self, *args, **kwargs)

    return wrapped


class Decorated(Regressor):
    """Methods behind a decorator of the user's, as every model of transformers has them."""

    forward = decorated(Regressor.forward)
    training_step = decorated(Regressor.training_step)


@pytest.mark.parametrize("copier", [copy.deepcopy, by_pickle])
def test_decorated_methods_are_copied_as_those_of_the_copy(copier):
    module, copies = Decorated(), Copies(copier)
    fit(module, points(), callback(), copies)
    twin, plain = copies.made, Regressor()
    torch.nn.utils.vector_to_parameters(copies.at, plain.parameters())
    for student in (twin, plain):
        fit(student, points())
    assert_close(weights(twin), weights(plain), rtol=0, atol=0)


@pytest.mark.usefixtures("doctor")
@pytest.mark.filterwarnings("error:.*finite differences skipped")
def test_the_doctor_examines_a_decorated_student():
    taught = [Decorated(), Regressor()]
    for module in taught:
        fit(module, points(), callback(engine="tape"))
    assert_close(*map(weights, taught), rtol=0, atol=0)
