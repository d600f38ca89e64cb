"""A run in intervals is the run in one go; a copied checkpoint keeps its own settings."""

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.tune import running
from lightning_sobolev.experiments.tune.interval import train_interval
from lightning_sobolev.experiments.tune.knobs import apply, read_knobs
from tests.scripts.conftest import DISTILLATION

SMALL = (
    "+experiment=regression",
    "scale=smoke",
    "steps=12",
    "model.width=8",
    "model.depth=1",
    "sizes.smoke.num_test_points=32",
)


def composed(*overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("tune", [*SMALL, *overrides, "run_dir=.", "progress=false"])


def trained(cfg, folder, end, start=None):
    folder.mkdir(exist_ok=True)
    score = train_interval(cfg, folder, member=3, start=start, end=end)
    path = folder / "last.ckpt"
    return path, torch.load(path, weights_only=True), score


@pytest.fixture
def donor(tmp_path):
    return trained(composed(), tmp_path / "donor", end=5)


def test_intervals_are_the_run_in_one_go(tmp_path, monkeypatch):
    # The first weights depend on the end of the interval; here both begin with the same.
    monkeypatch.setattr("lightning.pytorch.seed_everything", lambda *_, **__: torch.manual_seed(0))
    half, _, _ = trained(composed(), tmp_path / "half", end=6)
    _, parts, score = trained(composed(), tmp_path / "parts", end=12, start=half)
    _, whole, expected = trained(composed(), tmp_path / "whole", end=12)
    assert parts["global_step"] == whole["global_step"] == 12
    for name, weights in whole["state_dict"].items():
        assert torch.equal(weights, parts["state_dict"][name]), name
    assert score == expected


def test_the_learning_rate_is_the_members_own_and_the_schedule_goes_on(donor, tmp_path):
    path, _, _ = donor
    lr, steps = 0.03, 12
    _, went_on, _ = trained(composed(f"lr={lr}"), tmp_path / "own", end=8, start=path)
    group = went_on["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == lr
    assert group["lr"] == pytest.approx(lr * 0.5 * (1 + math.cos(math.pi * 8 / steps)), rel=1e-12)
    schedule = went_on["lr_schedulers"][0]
    assert schedule["base_lrs"] == [lr]
    assert schedule["_last_lr"] == [group["lr"]]


def test_scales_and_counter_travel_and_the_weight_does_not(donor, tmp_path):
    """The first step of the copy, in closed form: Adam's first moment shows weight and scale."""
    path, before, _ = donor
    key = next(k for k in before["callbacks"] if k.startswith("SobolevCallback"))
    own, after = {}, {}
    for weight in (1.0, 4.0):
        cfg = composed(f"sobolev.weight={weight}")
        _, own[weight], _ = trained(cfg, tmp_path / f"w{weight}", end=6, start=path)
        after[weight] = own[weight]["callbacks"][key]
    assert after[1.0]["counter"] == before["callbacks"][key]["counter"] + 1
    # One more batch in the mean: the scale went on from the donor's and knows nothing of weights.
    assert after[1.0]["scales"] == after[4.0]["scales"]
    count = before["callbacks"][key]["scales"]["order_1"]["count"]
    assert after[1.0]["scales"]["order_1"]["count"] == count + 1
    # exp_avg' = 0.9 exp_avg + 0.1 (g_value + w g_term): two weights give the gradients of both.
    moments = {w: own[w]["optimizer_states"][0]["state"][0]["exp_avg"].double() for w in (1.0, 4.0)}
    cfg = composed("sobolev.weight=7.0")
    _, third, _ = trained(cfg, tmp_path / "w7", end=6, start=path)
    slope = (moments[4.0] - moments[1.0]) / 3
    assert slope.abs().max() > 0
    found = third["optimizer_states"][0]["state"][0]["exp_avg"].double()
    torch.testing.assert_close(found, moments[1.0] + 6 * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sobolev", ["none", "order1"])
def test_what_diverges_scores_nan(sobolev, tmp_path):
    cfg = composed("lr=1e30", f"sobolev={sobolev}")
    assert math.isnan(train_interval(cfg, tmp_path, member=0, start=None, end=12))


def test_members_begin_with_weights_of_their_own_and_the_same_data(tmp_path):
    scores = [
        train_interval(composed(), tmp_path / str(m), member=m, start=None, end=1) for m in (0, 1)
    ]
    assert scores[0] != scores[1]


def test_a_score_that_nobody_logs_is_refused(tmp_path):
    cfg = composed()
    OmegaConf.update(cfg, "tuning.scores.regression.metric", "test/nothing")
    with pytest.raises(ValueError, match=r"metric must be one of \['test/value_nmse'.*'test/noth"):
        train_interval(cfg, tmp_path, member=0, start=None, end=1)


@pytest.mark.slow
def test_a_distillation_goes_on_with_other_settings(tmp_path):
    """The whole path of the games, from recording to the test of the best, without a cluster."""
    given = (*DISTILLATION, "steps=4", "tuning.intervals=2", "progress=false")
    places = (f"run_dir={tmp_path}", f"data.root={tmp_path / 'recordings'}")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("tune", [*given, *places])
    knobs, configs = read_knobs(cfg, cfg.tuning.knobs), running.first_configs(cfg)
    running.prepare_data(cfg, tmp_path)
    path = None
    for number, end in enumerate((2, 4)):
        turned = apply(cfg, knobs, configs[number])
        score = train_interval(turned, tmp_path / "0", member=0, start=path, end=end)
        path = tmp_path / "0" / "last.ckpt"
        assert 0 < score < 10
    found = running.test_best(cfg, path)
    assert found["test/kl"] > 0
    assert abs(found["test/derivative_cosine"]) <= 1
