"""Run an experiment: ``python scripts/train.py +experiment=distill_pong``.

Ends with a table and with ``metrics.json`` in the folder of the run; the exit code is 0 only if
training and evaluation finished. ``conf/train.yaml`` lists what can be set.
"""

import sys
import warnings

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.train import run


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def main(cfg: DictConfig) -> None:
    """Run the composed experiment."""
    run(cfg)


if __name__ == "__main__":
    # Lightning's own use of torch; nothing that somebody who runs this could change.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted before or after training; nothing to resume from, start again")
