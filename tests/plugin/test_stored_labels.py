"""Stored labels in a trainer: nothing to say beside the teacher, exact resumption, refusals."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    CompileSettings,
    DirectionalTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    Standardized,
    Standardizer,
    StandardUnits,
    TraceTeacher,
)
from tests.plugin._students import mlp
from tests.plugin._trainers import as_loader, fit, fit_one_step, trainer, weights


class Student(L.LightningModule):
    def __init__(self, outputs=1):
        super().__init__()
        self.net = mlp(outputs=outputs)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.fixture
def batches(generator):
    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        {"x": randn(6, 3), "y": randn(6, 1), "v": randn(6, 3, 3), "hv": randn(6, 3, 3),
         "u": randn(6, 1), "jtu": randn(6, 3), "jv": randn(6, 3, 1), "t": randn(6)}
        for _ in range(3)
    ]  # fmt: skip


def callback(**options):
    return SobolevCallback(DirectionalTeacher("v", "hv", order=2, per_step=1), **options)


def test_a_resumed_run_takes_the_same_pairs(batches, tmp_path):
    options = {"enable_checkpointing": True, "max_epochs": 4}
    save = lambda: ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1)  # noqa: E731
    whole, again = Student(), Student()
    fit(whole, as_loader(batches), callback(), save(), **options)
    (middle,) = tmp_path.glob("epoch=1-*.ckpt")
    resumed = trainer(callback(), save(), **options)
    resumed.fit(again, as_loader(batches), ckpt_path=middle)
    assert_close(weights(again), weights(whole), rtol=0, atol=0)
    other = Student()
    fit(other, as_loader(batches), callback(seed=1), max_epochs=4)
    assert not torch.allclose(weights(other), weights(whole))


def test_a_teacher_says_what_is_matched(batches):
    teacher = DirectionalTeacher("v", "jv", cotangents="u", pulled="jtu")
    used = fit(Student(), as_loader(batches), SobolevCallback(teacher, weight=0.5))
    logged = used.callback_metrics
    both = logged["train/sobolev/tangents"] + logged["train/sobolev/cotangents"]
    assert_close(logged["train/sobolev/total"], 0.5 * both)
    used = fit(Student(), as_loader(batches), callback(), SobolevCallback(TraceTeacher("t")))
    assert {"train/sobolev/order_2", "train/sobolev/trace"} <= set(used.callback_metrics)


def test_compiled_it_is_the_same(batches):
    plain, compiled = Student(), Student()
    settings = CompileSettings(backend="aot_eager")
    fit_one_step(plain, batches[0], callback(module="net"))
    fit_one_step(compiled, batches[0], callback(module="net", engine="func", compile=settings))
    assert_close(weights(compiled), weights(plain))
    with pytest.raises(ValueError, match="compile must be False with a teacher that knows a part"):
        fit_one_step(
            Student(), batches[0],
            SobolevCallback(TraceTeacher("t"), module="net", engine="func", compile=settings),
        )  # fmt: skip


def test_products_of_anything_but_estimates_are_refused():
    with pytest.raises(ValueError, match="must be another than 'product', which multiplies"):
        SobolevCallback(mlp(), spec(discrepancy="product", num_projections=2))
    with pytest.raises(ValueError, match="num_projections must be at least 2 with discrepancy"):
        spec(discrepancy="product")


def spec(**options):
    return SobolevSpec(terms=[SobolevTerm(**options)])


def test_standard_units_convert_tangents_alone(batches):
    student = Student()
    units = Standardizer.fit(batches[0]["x"], batches[0]["y"])
    student.net = Standardized(student.net, units)
    units = StandardUnits(x="x", y="y", tangents="v", pushed="hv")
    with pytest.raises(ValueError, match="teacher must be one of tangents of order 1 with Stand"):
        fit_one_step(student, batches[0], callback(), units)
