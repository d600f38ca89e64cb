"""Train sections in processes of their own: ``python scripts/decouple.py``.

Measures how long sections wait for each other, locked and decoupled, and what accuracy is kept.
``conf/decouple.yaml`` lists what can be set.
"""

import logging
import sys

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.synthetic_gradients.processes.study import run_decoupling


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="decouple")
def main(cfg: DictConfig) -> None:
    """Run all ways in turns."""
    try:
        logging.getLogger(__name__).info("table: %s", run_decoupling(cfg))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"decouple.py: {error}")


if __name__ == "__main__":
    main()
