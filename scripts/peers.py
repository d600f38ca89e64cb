"""Compare with the packages people use: ``python scripts/peers.py`` (extra ``bench``).

Writes ``peers.csv`` and ``peers.md`` to ``out``; a second call measures what is missing.
``conf/peers.yaml`` lists what can be set.
"""

import logging
import sys

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.benchmark.baselines.running import run_peers
from lightning_sobolev.experiments.run.conf import config_folder


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="peers")
def main(cfg: DictConfig) -> None:
    """Run the composed comparison."""
    try:
        logging.getLogger(__name__).info("table: %s", run_peers(cfg))
    except ValueError as error:
        sys.exit(f"peers.py: {error}")


if __name__ == "__main__":
    main()
