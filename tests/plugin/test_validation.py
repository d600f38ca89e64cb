"""Derivatives where Lightning turns gradients off: no setting of the Trainer is touched."""

import pytest
import torch
from torch.func import grad, hessian, vmap
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    BatchTeacher,
    DirectionalTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    TraceTeacher,
)
from lightning_sobolev.functional.derivatives import hvp
from lightning_sobolev.metrics import DerivativeNMSE
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import points, trainer

TEACHER = mlp(seed=7)


def rows(network, x, engine):
    u, v = torch.ones(1, len(x), 2, dtype=x.dtype), torch.ones(1, *x.shape, dtype=x.dtype)
    return hvp(network, x, u, v, engine=engine)


class Measures(Regressor):
    def __init__(self, engine="tape"):
        super().__init__()
        self.engine = engine
        self.nmse = DerivativeNMSE()
        self.modes = set()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.modes.add(torch.is_inference_mode_enabled())
        assert not torch.is_grad_enabled()
        self.nmse(rows(self.net, x, self.engine), rows(TEACHER, x, self.engine))
        self.log("nmse", self.nmse)
        self.log("loss", mse_loss(self.net(x), y))

    test_step = validation_step


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_derivative_metrics_in_validate_test_and_fit(engine):
    module = Measures(engine)
    data = points()
    used = trainer(SobolevCallback(TEACHER), limit_train_batches=1, num_sanity_val_steps=0)
    used.fit(module, data, data)
    in_fit = used.callback_metrics["nmse"].clone()
    (validated,) = used.validate(module, data, verbose=False)
    (tested,) = used.test(module, data, verbose=False)
    assert module.modes == {True, False}  # validate and test run under inference mode, fit not
    x = data.dataset.tensors[0]
    theirs = rows(TEACHER, x, engine)
    error = (rows(module.net, x, engine) - theirs).square().sum()
    expected = (error / theirs.square().sum()).detach()
    for found in (in_fit, validated["nmse"], tested["nmse"]):
        assert_close(float(found), float(expected), rtol=1e-6, atol=0)


def test_training_goes_on_behind_a_validation_under_inference_mode():
    """What was made there must not be met again by autograd."""
    module, data = Measures(), points()
    used = SobolevCallback(TEACHER)
    for _ in range(2):
        trainer(used).validate(module, data, verbose=False)
        trainer(used).fit(module, data, data)
    assert used.state_dict()["counter"] == 6


class AsksForTheTrainingLoss(Regressor):
    def validation_step(self, batch, batch_idx):
        self.found = self.training_step(batch, batch_idx)


def test_a_validation_step_that_asks_for_the_training_loss_gets_the_plain_one():
    module = AsksForTheTrainingLoss()
    used = trainer(SobolevCallback(TEACHER))
    used.fit(module, points(), points(size=8))
    x, y = next(iter(points(size=8)))
    assert_close(module.found, mse_loss(module(x), y).detach())


class Scalar(Regressor):
    """One output without an axis; batches are dicts."""

    def __init__(self):
        super().__init__(mlp(outputs=1))

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["x"]), batch["y"])

    def validation_step(self, batch, batch_idx):
        self.net(batch["x"])


@pytest.mark.parametrize("kind", ["trace", "pushed", "value"])
def test_what_has_one_number_a_row_has_the_sign_of_one_as_cosine(kind):
    x, y = next(iter(points(outputs=1)))
    module = Scalar()
    module.net.append(torch.nn.Flatten(0))
    teacher = {
        "trace": TraceTeacher("label"),
        "pushed": DirectionalTeacher("x", "label"),
        "value": BatchTeacher(value="label"),
    }[kind]
    spec = SobolevSpec(terms=[SobolevTerm(order=0, name="value")]) if kind == "value" else None
    batch = {"x": x, "y": y[:, 0], "label": y[:, 0]}
    callback = SobolevCallback(
        teacher, spec, module="net", validate=True, doctor=False, labels="off"
    )
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    used = trainer(callback)
    used.fit(module, loader, loader)
    net = module.net.requires_grad_(False)
    once = lambda row: net(row[None])[0]  # noqa: E731
    own = {
        "trace": lambda row: hessian(once)(row).trace(),
        "pushed": lambda row: grad(once)(row) @ row,
        "value": once,
    }[kind]
    expected = (vmap(own)(x).sign() * y[:, 0].sign()).mean()
    (found,) = [v for k, v in used.callback_metrics.items() if k.endswith("_cosine")]
    assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
