"""conf/train_teacher.yaml and its group compose: a training for every game with an experiment."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lightning_sobolev.experiments.run.conf import config_folder

CONF = config_folder()
EXPERIMENTS = {path.stem for path in (CONF / "experiment").glob("distill_*")}
GAMES = [name.removeprefix("distill_") for name in EXPERIMENTS - {"distill_policy"}]


@pytest.mark.parametrize("game", sorted(GAMES))
def test_config_composes_and_builds(game):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train_teacher", [f"+teacher_training=ppo_{game}", "run_dir=run"])
    assert instantiate(cfg.env.settings).game == game
    assert cfg.name == f"ppo_{game}"
    assert Path(cfg.export.path) == Path("run") / f"{game}.safetensors"
