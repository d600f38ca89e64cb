"""Trains, saves after every step, and is killed without warning: python -m ... FOLDER MOMENT N."""

import os
import signal
import sys
from pathlib import Path

import torch

from tests.experiments.run import test_resume
from tests.experiments.run.test_resume import Interrupt, train


class Kill(Interrupt):
    def _at(self, moment):
        if moment == self.moment and self.batch == self.number:
            die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class HalfWritten(test_resume.LastCheckpoint):
    def _save(self, trainer):
        super()._save(trainer)
        if trainer.global_step == NUMBER + 1:
            content = self.path.read_bytes()
            self.path.with_name("last.ckpt.01234567.tmp").write_bytes(content[: len(content) // 2])
            die()


if __name__ == "__main__":
    FOLDER, MOMENT, NUMBER = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    if MOMENT == "while saving":
        test_resume.LastCheckpoint = HalfWritten
        train(FOLDER, every=1)
    train(FOLDER, Kill(MOMENT, NUMBER), every=1)
