"""conf/train_teacher.yaml and its group compose, and everything they describe can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lightning_sobolev.atari import AtariSettings
from lightning_sobolev.experiments.run.conf import config_folder

CONF = config_folder()
NAMES = sorted(path.stem for path in (CONF / "teacher_training").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_config_composes_and_builds(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train_teacher", [f"+teacher_training={name}", "run_dir=run"])
    settings = instantiate(cfg.env.settings)
    assert isinstance(settings, AtariSettings)
    assert cfg.name == name == f"ppo_{settings.game}"
    assert Path(cfg.export.path) == Path("run") / f"{settings.game}.safetensors"


def test_there_is_a_training_for_every_game_with_an_experiment():
    games = {path.stem.removeprefix("distill_") for path in (CONF / "experiment").glob("distill_*")}
    assert {f"ppo_{game}" for game in games} <= set(NAMES)
