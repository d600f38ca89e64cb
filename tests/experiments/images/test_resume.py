"""A training on images that broke off inside a step goes on as if it had not."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_sobolev.experiments.images import datamodule
from lightning_sobolev.experiments.images.datamodule import ImageDataModule
from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled
from lightning_sobolev.experiments.images.module import ClassificationModule
from tests.plugin._trainers import trainer, weights


class BreaksOff(L.Callback):
    """A fault inside the step that follows ``step`` whole ones; all is saved as it is then."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_before_backward(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("a fault inside the step")

    def on_exception(self, trainer, *args):
        trainer.save_checkpoint(self.path)


def train(*callbacks, ckpt=None):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    module = ClassificationModule(net, partial(torch.optim.SGD, lr=0.1))
    data = ImageDataModule(num_validation=6, batch_size=5)
    used = trainer(*callbacks, max_epochs=3, precision="32-true")
    used.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return weights(module), used.global_step


@pytest.mark.parametrize("step", [2, 4, 6])
def test_the_batch_of_a_step_that_broke_off_is_given_again(step, tmp_path, generator, monkeypatch):
    pixels = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8, generator=generator)
    made = Labeled(pixels, torch.arange(30) % 10)
    found = ImageSet(made, made, tuple("0123456789"))
    monkeypatch.setitem(datamodule.IMAGES, "fashion_mnist", lambda *_, **__: found)
    whole, steps = train()
    path = tmp_path / "broken.ckpt"
    with pytest.raises(RuntimeError, match="a fault inside the step"):
        train(BreaksOff(step, path))
    resumed, resumed_steps = train(ckpt=path)
    assert resumed_steps == steps == 12
    assert torch.equal(resumed, whole)
