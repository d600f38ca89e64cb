"""Train a population: ``python scripts/tune.py +experiment=distill_pong tune=pbt``.

Needs the extra ``tune``. Leaves the best checkpoint, the settings it went through, the lineage and
``metrics.json`` in the folder of the run. ``conf/tune.yaml`` lists what can be set.
"""

import sys

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.tune.running import run_tuning


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="tune")
def main(cfg: DictConfig) -> None:
    """Run the composed search."""
    try:
        run_tuning(cfg)
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"tune.py: {error}")


if __name__ == "__main__":
    main()
