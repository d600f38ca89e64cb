from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_sobolev.atari import SmallCNN
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.teachers import NetworkTeacher

ADAM = partial(torch.optim.Adam, lr=1e-2)
QUIET = {"accelerator": "cpu", "logger": False}
QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def networks():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield [SmallCNN(6).eval() for _ in range(2)]
    torch.set_default_dtype(before)


def module_of(student, teacher=None, **options):
    teacher = NetworkTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
    return DistillationModule(student, ADAM, teacher=teacher, **options)


def results_of(module, callbacks, folder):
    x = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    batch = {"x": x, "log_probs": torch.zeros(8, 6).log_softmax(-1)}
    options = {"default_root_dir": folder, "inference_mode": False, **QUIET}
    trainer = pl.Trainer(callbacks=callbacks, **options)
    return trainer.test(module, DataLoader([batch], batch_size=None), verbose=False)[0]
