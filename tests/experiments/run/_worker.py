"""Trains on two processes, loses one: python -m tests.experiments.run._worker FOLDER WHAT N."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as L
import torch

from tests.experiments.run.test_resume import train

NUMBER = 4


class Lose(L.Callback):
    def __init__(self, what):
        self.what, self.batch = what, -1

    def on_train_batch_start(self, trainer, *args):
        self.batch += 1
        if self.batch == NUMBER and trainer.global_rank == 1:
            if self.what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("a fault of the second process alone")


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    others = [] if sys.argv[2] == "nothing" else [Lose(sys.argv[2])]
    train(
        Path(sys.argv[1]), *others, every=int(sys.argv[3]), resume="resume" in sys.argv, **options
    )
