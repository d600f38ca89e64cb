"""Train a population: ``python scripts/tune.py +experiment=distill_pong tune=pbt``.

Needs the extra ``tune``. Leaves the best checkpoint, the settings it went through, the lineage and
``metrics.json`` in the folder of the run. ``conf/tune.yaml`` lists what can be set.
"""

import sys
from importlib.util import find_spec

import hydra
from omegaconf import DictConfig

from lightning_sobolev.experiments.run.conf import config_folder


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="tune")
def main(cfg: DictConfig) -> float | str | None:
    """Run the composed search; a sweeper compares the best member's score."""
    if find_spec("ray") is None:
        sys.exit("tune.py: ray is missing: pip install 'lightning-sobolev[tune]'")
    from lightning_sobolev.experiments.tune.tune import run_tuning

    try:
        return run_tuning(cfg).get("score")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"tune.py: {error}")


if __name__ == "__main__":
    main()
