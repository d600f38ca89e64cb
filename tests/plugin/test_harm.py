import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_sobolev import AnalyticTeacher, HarmCheck, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.callbacks.twin import Twin
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import trainer, weights

OPTIONS = {"max_epochs": 6, "num_sanity_val_steps": 0}


class Student(Regressor):
    """Dropout, a schedule and a log: whatever a twin may stumble over."""

    def __init__(self, dropout=0.0):
        super().__init__(nn.Sequential(*mlp(2, 1, width=16), nn.Dropout(dropout)))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def truth(x):
    return (x[:, :1] * 2).sin() + x[:, 1:] ** 2


def data(size, seed):
    x = torch.rand(size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DataLoader(TensorDataset(x, truth(x)), batch_size=4)


def run(check=None, teacher=truth, weight=1.0, module=None, **options):
    torch.manual_seed(3)
    module = Student() if module is None else module
    callbacks = [] if check is None else [check]
    if weight:
        spec = SobolevSpec(terms=[SobolevTerm(weight=weight)])
        callbacks.append(
            SobolevCallback(AnalyticTeacher(teacher), spec, module="net", doctor=False)
        )
    used = trainer(*callbacks, **{**OPTIONS, **options})
    used.fit(module, data(12, 0), data(64, 1))
    return module, used


class Spy(HarmCheck):
    def on_train_end(self, trainer, pl_module):
        self.learned = weights(self._twin.module)
        self.logged = trainer.callback_metrics["train/loss"]
        super().on_train_end(trainer, pl_module)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_twin_is_the_run_without_terms(clip):
    spy = Spy(threshold=1e6)
    run(spy, gradient_clip_val=clip)
    plain, _ = run(weight=0.0, gradient_clip_val=clip)
    assert_close(spy.learned, weights(plain), rtol=0, atol=0)


def test_a_run_is_the_same_with_and_without_the_check():
    checked, used = run(HarmCheck(1e6), module=Student(0.3))
    alone, other = run(module=Student(0.3))
    assert_close(weights(checked), weights(alone), rtol=0, atol=0)
    for key, value in other.callback_metrics.items():
        assert_close(used.callback_metrics[key], value)


def test_wrong_derivatives_are_told_in_one_warning():
    check = HarmCheck()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(check, teacher=lambda x: -3 * truth(x), weight=10.0)
    (text,) = [str(one.message) for one in found if "derivative terms raise" in str(one.message)]
    advice = ["the sign", "the units", "examine_labels", "a small balanced weight (Balanced(0.1))"]
    assert sorted(advice, key=text.index) == advice
    assert check.ratio > 1.2


def test_right_derivatives_are_not(recwarn):
    check = HarmCheck()
    _, used = run(check)
    assert check.ratio < 1.0
    assert not [one for one in recwarn if "derivative terms raise" in str(one.message)]
    assert_close(float(used.callback_metrics["val/sobolev/harm_ratio"]), check.ratios[-1])


def test_a_resumed_run_judges_as_an_uninterrupted_one(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1)
    options = {**OPTIONS, "enable_checkpointing": True}

    def fitted(**resumed):
        spy, spec = Spy(1e6), SobolevSpec(terms=[SobolevTerm()])
        own = SobolevCallback(AnalyticTeacher(truth), spec, module="net", doctor=False)
        used = trainer(spy, own, saving, **options)
        used.fit(Student(), data(12, 0), data(64, 1), **resumed)
        return spy

    whole = fitted()
    (middle,) = tmp_path.glob("epoch=2-*.ckpt")
    again = fitted(ckpt_path=middle, weights_only=True)
    assert_close(again.learned, whole.learned, rtol=0, atol=0)
    assert again.ratios == pytest.approx(whole.ratios[-len(again.ratios) :])
    assert len(again.ratios) >= 5


class Two(Student):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def test_what_no_twin_can_follow_is_refused():
    with pytest.raises(ValueError, match=r"threshold must be at least 1, got 0\.5"):
        HarmCheck(0.5)
    with pytest.raises(ValueError, match="HarmCheck needs validation data"):
        run(HarmCheck(), limit_val_batches=0)
    with pytest.raises(ValueError, match="needs a module with one optimizer"):
        Twin(Two(), trainer())
    with pytest.raises(ValueError, match="HarmCheck needs accumulate_grad_batches=1"):
        run(HarmCheck(), accumulate_grad_batches=2)
