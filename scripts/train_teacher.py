"""Train a teacher: ``python scripts/train_teacher.py +teacher_training=ppo_breakout``.

Ends with a stored agent and its card in the folder of the run; ``ckpt=last`` goes on where the
newest run stopped, ``train=false ckpt=last`` stores the agent of a checkpoint as it is.
``conf/train_teacher.yaml`` lists what can be set.
"""

import sys

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.teach.train import train_teacher


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train_teacher")
def main(cfg: DictConfig) -> float | str | None:
    """Run the composed training; a sweeper compares the mean return."""
    return train_teacher(cfg).get("test/teacher_return")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted before or after training, or twice; what was saved stays: ckpt=last")
