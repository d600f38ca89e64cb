"""Knobs are drawn and turned inside their bounds, in logarithms."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import stats

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.tune.knobs import Knob, apply, draw, explore, read_knobs
from lightning_sobolev.experiments.tune.running import first_configs, run_tuning
from lightning_sobolev.experiments.tune.schedulers import Tournament

KNOBS = {"lr": Knob(["lr"], 1e-3, 1e-1), "rows": Knob(["sobolev.rows"], 0.25, 1.0)}


def composed(*overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("tune", [*overrides, "run_dir=."])


def test_draws_are_uniform_in_the_logarithm():
    random = Random(0)
    drawn = [draw(KNOBS, random)["lr"] for _ in range(2000)]
    low, high = math.log(1e-3), math.log(1e-1)
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_settings_are_multiplied_or_drawn_anew_and_stay_inside():
    random, seen = Random(0), Counter()
    for _ in range(2000):
        moved = explore({"lr": math.log(0.01), "rows": 0.0}, KNOBS, random)
        ratio = round(KNOBS["lr"].value(moved["lr"]) / 0.01, 9)
        seen[ratio if ratio in (0.8, 1.2) else "fresh"] += 1
        assert 0.25 <= KNOBS["rows"].value(moved["rows"]) <= 1.0
    assert abs(seen["fresh"] - 500) < 100
    assert abs(seen[0.8] - 750) < 110


def test_the_value_never_leaves_the_bounds_by_rounding():
    for knob in KNOBS.values():
        values = [knob.value(position) for position in knob.bounds]
        assert knob.low <= values[0] <= values[1] <= knob.high
        assert values == pytest.approx([knob.low, knob.high], rel=1e-14)


def test_a_knob_with_two_paths_moves_both():
    cfg = composed("+experiment=distill_pong")
    knobs = read_knobs(cfg, cfg.tuning.knobs)
    turned = apply(cfg, knobs, dict.fromkeys(knobs, math.log(0.5)) | {"lr": math.log(0.01)})
    weight = turned.sobolev.callback.spec.terms[0].weight
    assert weight.start == weight.end == pytest.approx(0.5)
    assert turned.task.module.lr == pytest.approx(0.01)
    assert turned.sobolev.callback.spec.terms[0].rows == pytest.approx(0.5)
    assert cfg.sobolev.final_weight == 0.0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_bounds_are_positive_and_in_order(low, high):
    with pytest.raises(ValueError, match=r"must be 0 < low < high, got"):
        Knob(["lr"], low, high)


def test_a_knob_without_a_setting_is_refused():
    with pytest.raises(ValueError, match=r"tuning.knobs.a: paths must be settings, got 'nowhere'"):
        read_knobs(OmegaConf.create({}), {"a": {"paths": ["nowhere"], "low": 1.0, "high": 2.0}})


EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_tuned(experiment):
    cfg = composed(f"+experiment={experiment}")
    assert set(read_knobs(cfg, cfg.tuning.knobs)) >= {"lr"}
    assert cfg.tuning.score.mode in ("min", "max")


@pytest.mark.parametrize("sobolev", ["none", "order1", "order2", "hessian_rows"])
def test_all_weights_of_a_choice_are_knobs(sobolev):
    cfg = composed("+experiment=regression", f"sobolev={sobolev}")
    knobs = set(read_knobs(cfg, cfg.tuning.knobs))
    order = {"none": 0, "order1": 1}.get(sobolev, 2)
    assert knobs == [{"lr"}, {"lr", "weight", "rows"}, {"lr", "weight", "weight_2", "rows"}][order]


@pytest.mark.parametrize("file", sorted((config_folder() / "tune").glob("*.yaml")), ids=str)
def test_members_begin_as_the_choice_says(file):
    cfg = composed("+experiment=regression", f"tune={file.stem}")
    configs = first_configs(cfg)
    assert [config["member"] for config in configs] == list(range(8))
    assert configs == first_configs(cfg)
    assert len({tuple(config.items()) for config in configs}) == 8
    assert (len(configs[0]) == 4) == cfg.tune.drawn
    build = instantiate(cfg.tune.scheduler)
    knobs = read_knobs(cfg, cfg.tuning.knobs)
    scheduler = build and build(knobs, mode="min", seed=0)
    assert (scheduler is None) == (file.stem in ("random", "constant"))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("tuning.population=1", "population must be at least 2, got 1"),
        ("tuning.intervals=0", "intervals must be from 1 to steps"),
        ("tuning.scores.regression.mode=up", "mode must be 'min' or 'max', got 'up'"),
    ],
)
def test_bad_settings_are_refused(override, text):
    with pytest.raises(ValueError, match=text):
        run_tuning(composed("+experiment=regression", override))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("lightning_sobolev.experiments.tune.running.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'tune'"):
        run_tuning(composed("+experiment=regression"))


def test_an_exploration_needs_knobs():
    with pytest.raises(ValueError, match="knobs must hold at least one setting"):
        Tournament({}, mode="min", seed=0)


def test_positions_are_logarithms():
    positions = draw(KNOBS, Random(1))
    assert np.isclose(KNOBS["lr"].value(positions["lr"]), np.exp(positions["lr"]))
