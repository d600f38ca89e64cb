"""A small student, and a training of it that can be broken off."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lightning_sobolev.atari import SmallCNN
from tests.plugin._trainers import QUIET


class Student(pl.LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = SmallCNN(6).to(torch.float32)
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["index"].tolist())
        log_probs = self.net(batch["x"].float() / 255).log_softmax(-1)
        return -(batch["log_probs"].exp() * log_probs).sum(-1).mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Stopped(Exception):
    pass


class StopIn(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(trainer.default_root_dir + "/last.ckpt")
            raise Stopped


def fit(data, folder, *callbacks, ckpt_path=None, student=None, **options):
    student = student or Student()
    short = {"precision": None, "num_sanity_val_steps": 0, "max_steps": 8, "max_epochs": -1}
    options = {**QUIET, **short, "callbacks": list(callbacks), **options}
    trainer = pl.Trainer(default_root_dir=folder, **options)
    trainer.fit(student, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return student
