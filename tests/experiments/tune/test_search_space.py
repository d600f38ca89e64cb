"""Settings move inside their bounds, in logarithms, and every experiment has some."""

import math

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.tune.schedulers import Population
from lightning_sobolev.experiments.tune.search_space import Setting, apply, read_search_space


def composed(*overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("tune", [*overrides, "run_dir=."])


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e-1), (0.25, 1.0)])
def test_the_value_never_leaves_the_bounds_by_rounding(low, high):
    setting = Setting(["lr"], low, high)
    values = [setting.value(position) for position in setting.bounds]
    assert low <= values[0] <= values[1] <= high
    assert values == pytest.approx([low, high], rel=1e-14)
    assert setting.value(math.log(0.5 * high)) == pytest.approx(0.5 * high)


def test_a_setting_with_two_paths_moves_both():
    cfg = composed("+experiment=distill_pong")
    positions = {"weight": math.log(0.5), "lr": math.log(0.01)}
    moved = apply(cfg, read_search_space(cfg), positions)
    weight = moved.sobolev.callback.spec.terms[0].weight
    assert weight.start == weight.end == pytest.approx(0.5)
    assert moved.optimizer.lr == pytest.approx(0.01)
    assert moved.sobolev.rows == cfg.sobolev.rows
    assert cfg.sobolev.final_weight == 0.0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_bounds_are_positive_and_in_order(low, high):
    with pytest.raises(ValueError, match=r"must be 0 < low < high, got"):
        Setting(["lr"], low, high)


def test_a_path_without_a_setting_is_refused():
    cfg = {"tuning": {"search_space": {"a": {"paths": ["nowhere"], "low": 1.0, "high": 2.0}}}}
    text = r"tuning.search_space.a: paths must be settings, got 'nowhere'"
    with pytest.raises(ValueError, match=text):
        read_search_space(OmegaConf.create(cfg))


EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_tuned(experiment):
    cfg = composed(f"+experiment={experiment}")
    assert set(read_search_space(cfg)) >= {"lr"}
    assert cfg.score.mode in ("min", "max")


@pytest.mark.parametrize("sobolev", ["none", "order1", "order2", "hessian_rows"])
def test_all_weights_of_a_choice_are_searched(sobolev):
    cfg = composed("+experiment=regression", f"sobolev={sobolev}")
    order = {"none": 0, "order1": 1}.get(sobolev, 2)
    expected = [{"lr"}, {"lr", "weight", "rows"}, {"lr", "weight", "weight_2", "rows"}][order]
    assert set(read_search_space(cfg)) == expected


@pytest.mark.parametrize("file", sorted((config_folder() / "tune").glob("*.yaml")), ids=str)
def test_every_choice_builds_its_scheduler(file):
    cfg = composed("+experiment=regression", f"tune={file.stem}")
    build = instantiate(cfg.tune.scheduler)
    scheduler = build and build(read_search_space(cfg), mode="min", seed=0)
    assert (scheduler is None) == (file.stem in ("random", "constant"))
    assert scheduler is None or isinstance(scheduler, Population)
    assert cfg.tune.sampled == (file.stem != "constant")
