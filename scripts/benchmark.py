"""Measure what is no training run: ``python scripts/benchmark.py study=NAME``.

Without a name, what a training step costs. ``conf/study`` lists the studies and what can be set; a
second call measures what is missing.
"""

import logging
import sys

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Run the composed study."""
    try:
        logging.getLogger(__name__).info("table: %s", instantiate(cfg.run)(cfg))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"benchmark.py: {error}")


if __name__ == "__main__":
    main()
