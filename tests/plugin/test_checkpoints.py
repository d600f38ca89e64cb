"""A run that was stopped goes on as if it had not been."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from lightning_sobolev import Balanced, SobolevCallback, SobolevMixin, SobolevSpec, SobolevTerm
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches
from tests.plugin._students import Adam, mlp
from tests.plugin._trainers import fit, points, trainer, weights

BALANCED = SobolevTerm(order=2, weight=Balanced(0.1, every_n_steps=2), rows=0.5)
SPEC = SobolevSpec(terms=[SobolevTerm(), BALANCED])
OPTIONS = {"enable_checkpointing": True, "max_epochs": 4}


class WithMixin(SobolevMixin, Adam):
    def configure_sobolev(self):
        return callback()


def callback(**options):
    return SobolevCallback(mlp(seed=7), SPEC, **options)


def own(used):
    return next(c for c in used.callbacks if isinstance(c, SobolevCallback))


def saving(folder):
    return ModelCheckpoint(folder, save_top_k=-1, save_weights_only=False, every_n_epochs=1)


@pytest.mark.parametrize("by", ["callback", "mixin"])
def test_a_resumed_run_equals_an_uninterrupted_one(by, tmp_path):
    make = (lambda: (Adam(), [callback()])) if by == "callback" else (lambda: (WithMixin(), []))
    module, callbacks = make()
    whole = fit(module, points(), *callbacks, saving(tmp_path), **OPTIONS)
    (middle,) = tmp_path.glob("epoch=1-*.ckpt")
    again, callbacks = make()
    resumed = trainer(*callbacks, saving(tmp_path), **OPTIONS)
    resumed.fit(again, points(), ckpt_path=middle)
    assert_close(weights(again), weights(module), rtol=0, atol=0)
    ours, theirs = own(resumed).state_dict(), own(whole).state_dict()
    assert ours["counter"] == theirs["counter"] == 12
    assert_close(ours["scales"], theirs["scales"], rtol=0, atol=0)


def test_a_checkpoint_holds_counter_and_scales_and_no_teacher(tmp_path):
    fit(Adam(), points(), callback(), saving(tmp_path), **OPTIONS)
    (path,) = tmp_path.glob("epoch=3-*.ckpt")
    saved = torch.load(path, weights_only=True)
    (key,) = [key for key in saved["callbacks"] if key.startswith("SobolevCallback")]
    state = saved["callbacks"][key]
    assert state["counter"] == 12
    assert set(state["scales"]) == {"order_1", "order_2"}
    assert state["scales"]["order_2"]["count"] == 12
    assert set(saved["state_dict"]) == set(Adam().state_dict())


def resumable():
    return ResumableLoader(points().dataset, ShuffledBatches(24, 8, 3, seed=0))


def test_a_checkpoint_in_the_middle_of_an_epoch_resumes_exactly(tmp_path):
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    module = Adam()
    fit(module, resumable(), callback(), save, **{**OPTIONS, "max_epochs": 2})
    (middle,) = tmp_path.glob("*-step=4.ckpt")
    again = Adam()
    resumed = trainer(callback(), save, **{**OPTIONS, "max_epochs": 2})
    resumed.fit(again, resumable(), ckpt_path=middle)
    assert own(resumed).state_dict()["counter"] == 6
    assert_close(weights(again), weights(module), rtol=0, atol=0)


def test_global_randomness_has_no_say_and_is_not_moved():
    class Watches(L.Callback):
        def on_train_batch_start(self, *args):
            self.before = torch.get_rng_state()

        def on_train_batch_end(self, *args):
            assert torch.equal(self.before, torch.get_rng_state())

    one, other = Adam(), Adam()
    fit(one, points(), callback(), Watches())
    torch.manual_seed(123)
    fit(other, points(), callback(), Watches())
    assert_close(weights(one), weights(other), rtol=0, atol=0)


class SavesWithinAStep(L.Callback):
    """As Lightning does where Slurm asks for it: after the term, before the update."""

    def __init__(self, folder):
        self.path = folder / "within.ckpt"

    def on_before_backward(self, trainer, *args):
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_from_within_a_step_does_not_count_that_step(tmp_path):
    within = SavesWithinAStep(tmp_path)
    whole = fit(Adam(), points(), callback(), within, saving(tmp_path), **OPTIONS)
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)
    (key,) = [key for key in saved["callbacks"] if key.startswith("SobolevCallback")]
    assert saved["callbacks"][key]["counter"] == saved["global_step"] == 5
    assert saved["callbacks"][key]["scales"]["order_1"]["count"] == 5
    assert own(whole).state_dict()["counter"] == 12
