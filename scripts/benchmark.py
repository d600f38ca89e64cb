"""Compare what a training step costs: ``python scripts/benchmark.py``.

Writes rows, a table and charts to ``out``; a second call measures what is missing.
``conf/benchmark.yaml`` lists what can be set.
"""

import logging
import sys

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.benchmark.running import run_benchmark
from lightning_sobolev.experiments.run.conf import config_folder


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Run the composed benchmark."""
    try:
        logging.getLogger(__name__).info("table: %s", run_benchmark(cfg))
    except ValueError as error:
        sys.exit(f"benchmark.py: {error}")


if __name__ == "__main__":
    main()
