"""Run an experiment: ``python scripts/train.py +experiment=distill_pong``.

Ends with a table and with ``metrics.json`` in the folder of the run; the exit code is 0 only if
training and evaluation finished. ``conf/train.yaml`` lists what can be set.
"""

import sys

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.train import run, score_of


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run the composed experiment.

    Args:
        cfg: The composed configuration.

    Returns:
        What a sweeper compares: the metric that ``score`` names.
    """
    metrics = run(cfg)
    return score_of(cfg, metrics)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted before or after training; nothing to resume from, start again")
