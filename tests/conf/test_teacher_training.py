"""conf/train_teacher.yaml and its group compose: a training for every game with an experiment."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lightning_sobolev.experiments.run.conf import config_folder

CONF = config_folder()
GAMES = [path.stem.removeprefix("ppo_") for path in (CONF / "teacher_training").glob("ppo_*")]


@pytest.mark.parametrize("game", sorted(GAMES))
def test_config_composes_and_builds(game):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [f"+teacher_training=ppo_{game}", "run_dir=run"]
        if game == "atari":
            chosen, game = [*chosen, "env.settings.game=freeway"], "freeway"
        cfg = compose("train_teacher", chosen)
    assert instantiate(cfg.env.settings).game == game
    assert cfg.name == f"ppo_{game}"
    assert Path(cfg.export.path) == Path("run") / f"{game}.safetensors"
