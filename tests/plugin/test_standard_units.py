import copy
import pickle

import lightning.pytorch as L
import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    Standardized,
    Standardizer,
    StandardUnits,
)
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, trainer, weights

pytestmark = pytest.mark.usefixtures("float64")

SPEC = SobolevSpec(terms=[SobolevTerm(), SobolevTerm(order=2, weight=0.3)])
PARTS = {"x": "x", "y": "y", "jacobian": "dydx", "hessian": "hessian"}


class Student(Regressor):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["x"]), batch["y"])

    def predict_step(self, batch, batch_idx):
        return self.net(batch["x"])


class Judged(Student):
    def __init__(self, net):
        super().__init__(net)
        self.losses = []

    def validation_step(self, batch, batch_idx):
        self.losses.append(mse_loss(self.net(batch["x"]), batch["y"]))

    test_step = validation_step


@pytest.fixture
def data(generator):
    x = torch.tensor([1e3, 1e-2]) * torch.rand(16, 2, generator=generator) + 5.0
    a, b = 1e-3 * x[:, 0], 1e2 * (x[:, 1] - 5.0)
    y = 1e4 * (a * b + a.square()) + 7.0
    dydx = 1e4 * torch.stack([1e-3 * (b + 2 * a), 1e2 * a], 1)
    hessian = 1e4 * torch.tensor([[2e-6, 0.1], [0.1, 0.0]]).expand(16, 2, 2)
    return {"x": x, "y": y[:, None], "dydx": dydx[:, None], "hessian": hessian[:, None]}


def loader(columns, rows=8):
    table = [{k: v[i] for k, v in columns.items()} for i in range(len(columns["x"]))]
    return DataLoader(table, batch_size=rows)


def callbacks():
    teacher = BatchTeacher(jacobian="dydx", hessian="hessian")
    return [SobolevCallback(teacher, SPEC, module="net")]


def converted(data, units):
    return {
        "x": units.inputs(data["x"]),
        "y": units.targets(data["y"]),
        "dydx": units.jacobian(data["dydx"]),
        "hessian": units.hessian(data["hessian"]),
    }


@pytest.mark.parametrize("order", [1, -1], ids=["before", "behind"])
def test_training_equals_that_of_the_bare_network_on_standardized_data(order, data):
    units = Standardizer.fit(data["x"], data["y"])
    plain = Student(mlp(2, 1))
    fit(plain, loader(converted(data, units)), *callbacks())
    wrapped = Student(Standardized(mlp(2, 1), units))
    both = [StandardUnits(**PARTS), *callbacks()][::order]
    fit(wrapped, loader(data), *both)
    assert not torch.equal(weights(plain), weights(Student(mlp(2, 1))))
    assert_close(weights(wrapped), weights(plain))
    expected = units.targets(plain.net(units.inputs(data["x"])), undo=True)
    assert_close(wrapped.net(data["x"]), expected)


def test_losses_are_standardized_and_predictions_are_the_users(data):
    units = Standardizer.fit(data["x"], data["y"])
    student, bare = Judged(Standardized(mlp(2, 1), units)), mlp(2, 1)
    used = trainer(StandardUnits(x="x", y="y"))
    used.test(student, loader(data, 16), verbose=False)
    used.validate(student, loader(data, 16), verbose=False)
    values = bare(units.inputs(data["x"]))
    expected = mse_loss(values, units.targets(data["y"]))
    assert_close(torch.stack(student.losses), expected.expand(2))
    (predicted,) = used.predict(student, loader(data, 16))
    assert_close(predicted, units.targets(values, undo=True))


class Data(L.LightningDataModule):
    """Has a transfer hook of its own, which Lightning prefers to the module's."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def train_dataloader(self):
        return loader(self.columns, 16)

    val_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "y": batch["y"] + 1.0}


def test_a_data_module_with_a_hook_of_its_own(data):
    units = Standardizer.fit(data["x"], data["y"])
    student = Judged(Standardized(mlp(2, 1), units))
    module = Data(data)
    trainer(StandardUnits(x="x", y="y")).validate(student, module, verbose=False)
    expected = mse_loss(mlp(2, 1)(units.inputs(data["x"])), units.targets(data["y"] + 1.0))
    assert_close(student.losses[0], expected)
    assert "on_after_batch_transfer" not in vars(module)


class Copied(Student):
    def training_step(self, batch, batch_idx):
        self.copies = [copy.deepcopy(self), pickle.loads(pickle.dumps(self))]
        return super().training_step(batch, batch_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "seen_by": id(self)}


def test_copies_have_the_hook_of_their_own(data):
    student = Copied(Standardized(mlp(2, 1), Standardizer.fit(data["x"], data["y"])))
    fit(student, loader(data, rows=16), StandardUnits(x="x", y="y"))
    for each in [student, *student.copies]:
        assert each.on_after_batch_transfer({}, 0) == {"seen_by": id(each)}


class Broken(Student):
    def training_step(self, batch, batch_idx):
        self.copy = copy.deepcopy(self.net)
        raise RuntimeError("on purpose")


def test_a_crash_gives_the_users_units_back(data):
    student = Broken(Standardized(mlp(2, 1), Standardizer.fit(data["x"], data["y"])))
    before = student.net(data["x"])
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(student, loader(data), StandardUnits(**PARTS))
    assert_close(student.net(data["x"]), before)
    assert_close(student.copy(data["x"]), before)
    assert "on_after_batch_transfer" not in vars(student)


def test_a_teacher_that_does_not_read_the_batch_is_refused(data):
    student = Student(Standardized(mlp(2, 1), Standardizer.fit(data["x"], data["y"])))
    own = SobolevCallback(AnalyticTeacher(torch.sin), module="net")
    with pytest.raises(ValueError, match="a AnalyticTeacher would be asked in standardized units"):
        fit(student, loader(data), own, StandardUnits(**PARTS))


def test_what_cannot_be_converted_is_named(data):
    with pytest.raises(ValueError, match="needs a key path for x, y or a derivative"):
        StandardUnits()
    with pytest.raises(ValueError, match="one Standardized network in Student, got 0"):
        fit(Student(mlp(2, 1)), loader(data), StandardUnits(x="x"))
    student = Student(Standardized(mlp(2, 1), Standardizer(2, 1)))
    with pytest.raises(ValueError, match="no 'z' here; got a dict with keys"):
        fit(student, loader(data), StandardUnits(x="z"))
    with pytest.raises(ValueError, match="the inputs in the batch must be a floating-point tensor"):
        fit(student, loader({**data, "x": data["x"].long()}), StandardUnits(x="x"))
