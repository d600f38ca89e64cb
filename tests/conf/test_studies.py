"""Every study that scripts/benchmark.py can run composes and names the function that runs it."""

import inspect

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lightning_sobolev.experiments.run.conf import config_folder

STUDIES = sorted(path.stem for path in (config_folder() / "study").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_a_function_of_its_configuration(study):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("benchmark", [f"study={study}"])
    run = instantiate(cfg.run)
    assert list(inspect.signature(run).parameters) == ["cfg"]
    assert "out" in cfg


def test_speed_is_measured_unless_something_else_is_asked_for():
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        assert compose("benchmark") == compose("benchmark", ["study=speed"])
