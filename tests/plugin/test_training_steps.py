"""Steps as people write them: every way to call, to feed and to return."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import SobolevTerm
from tests.plugin._loops import by_hand, refuses, taught
from tests.plugin._students import Regressor, callback, mlp
from tests.plugin._trainers import as_loader, fit, points, weights


@pytest.fixture(scope="module")
def expected():
    return by_hand()


def same(found, expected):
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Outputs(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.last = outputs


class DictLoss(Regressor):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "index": batch_idx, "note": "kept"}


def test_a_loss_in_a_dict_keeps_the_other_keys(expected):
    outputs = Outputs()
    same(taught(DictLoss(), (), None, outputs), expected)
    assert (outputs.last["index"], outputs.last["note"]) == (2, "kept")


class SometimesNone(Regressor):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


def test_a_step_that_returns_none_skips_the_batch():
    used = callback()
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(SometimesNone(), points(), used)
    assert used.state_dict()["scales"]["order_1"]["count"] == 2


class TakesOnlyTheBatch(Regressor):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class Calls(Regressor):
    """Calls its network by some expression, and may look at something before or afterwards."""

    def __init__(self, call=None, looks=()):
        super().__init__()
        self.call, self.looks = call or (lambda self, x: self(x)), looks

    @torch.no_grad()
    def look(self, when, batch):
        if when in self.looks:
            self(batch[0] + 1.0)

    def training_step(self, batch, batch_idx):
        self.look("before", batch)
        loss = mse_loss(self.call(self, batch[0]), batch[1])
        self.look("afterwards", batch)
        return loss


STEPS = {
    "the child": lambda: Calls(lambda self, x: self.net(x)),
    "forward": lambda: Calls(lambda self, x: self.forward(x)),
    "the child's forward": lambda: Calls(lambda self, x: self.net.forward(x)),
    "by keyword": lambda: Calls(lambda self, x: self(x=x)),
    "looks before": lambda: Calls(looks=("before",)),
    "looks afterwards": lambda: Calls(looks=("afterwards",)),
    "takes only the batch": TakesOnlyTheBatch,
}


@pytest.mark.parametrize(("engine", "module"), [("tape", None), ("func", "net")])
@pytest.mark.parametrize("step", STEPS)
def test_every_way_to_call_is_the_same_step(step, engine, module, expected):
    same(taught(STEPS[step](), engine=engine, module=module), expected)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x.mul_(2.0).div_(2.0))


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_forward_that_begins_in_place_is_right_and_leaves_the_batch(engine, expected):
    data = points()
    before = data.dataset.tensors[0].clone()
    same(taught(Regressor(InPlace()), data=data, engine=engine), expected)
    assert_close(data.dataset.tensors[0], before, rtol=0, atol=0)


class DictBatch(Regressor):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["inputs"]["x"]), batch["y"])


def test_a_dict_batch(expected):
    data = as_loader([{"inputs": {"x": x}, "y": y} for x, y in points()])
    same(taught(DictBatch(), data=data), expected)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, index, shift, inputs):
        x = inputs["points"][0]
        return 0.0 * shift.sum() + self.body(x) + 0.0 * index.sum()


class SeveralInputs(Regressor):
    def __init__(self, by_name):
        super().__init__(Several())
        self.by_name = by_name

    def training_step(self, batch, batch_idx):
        x, y = batch
        index, shift, inputs = torch.arange(len(x)), x + 1.0, {"points": (x,), "size": len(x)}
        if self.by_name:
            return mse_loss(self.net(index, inputs=inputs, shift=shift), y)
        return mse_loss(self.net(index, shift, inputs), y)


@pytest.mark.parametrize(
    ("wrt", "by_name"), [(2, False), ("2.points.0", False), ("inputs.points", True)]
)
def test_the_input_is_named_by_position_name_or_key_path(wrt, by_name, expected):
    same(taught(SeveralInputs(by_name), module="net", wrt=wrt), expected)


@pytest.mark.parametrize(
    ("wrt", "text"),
    [
        (5, r"wrt=5: no 'args.5' here; got a tuple with keys"),
        ("z", r"wrt='z': the observed module has no such argument, got \['index', 'shift'"),
        ("inputs.velocities", r"no 'args.2.velocities' here; got a dict with keys \['points'"),
        ("index", r"must get a floating-point tensor .* got a tensor \[8\] of torch.int64"),
        ("shift.0", r"no 'args.1.0' here; got a tensor \[8, 3\]"),
    ],
)
def test_an_input_that_does_not_exist_is_an_error(wrt, text):
    refuses(SeveralInputs(by_name=False), text, module="net", wrt=wrt)


class BuiltLate(Regressor):
    def __init__(self):
        super().__init__()
        self.blueprint = [self.net]
        del self.net

    def configure_model(self):
        (self.net,) = self.blueprint


@pytest.mark.parametrize("module", [None, "net"])
def test_a_student_that_is_built_in_configure_model(module, expected):
    same(taught(BuiltLate(), module=module), expected)


class Frozen(Regressor):
    def configure_optimizers(self):
        self.requires_grad_(False)
        return super().configure_optimizers()


def test_a_student_without_trainable_parameters_runs():
    same(taught(Frozen()), weights(Regressor()))


def test_every_call_counts_once_when_all_do():
    class Halves(Regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return mse_loss(torch.cat([self(x[:4]), self(x[4:])]), y)

    term = SobolevTerm(projection="basis", num_projections=None)
    same(taught(Halves(), term, call="all"), by_hand(None, term))
