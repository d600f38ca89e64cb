"""A run in intervals is the run in one go; a copied checkpoint keeps its own settings."""

import math
import shutil

import pytest
import torch

from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.tune.trainable import train_interval
from tests.experiments.tune._search import composed


def trained(cfg, folder, end, start=None):
    if start is not None:
        (folder / LAST).parent.mkdir(parents=True)
        shutil.copy(start, folder / LAST)
    score = train_interval(cfg, folder, 3, end, resume=start is not None)
    return folder / LAST, torch.load(folder / LAST, weights_only=True), score


@pytest.fixture
def donor(tmp_path):
    return trained(composed(tmp_path), tmp_path / "donor", end=5)


def test_intervals_are_the_run_in_one_go(tmp_path, monkeypatch):
    # The first weights depend on the end of the interval; here both begin with the same.
    monkeypatch.setattr("lightning.pytorch.seed_everything", lambda *_, **__: torch.manual_seed(0))
    cfg = composed(tmp_path)
    half, _, _ = trained(cfg, tmp_path / "half", end=6)
    _, parts, score = trained(cfg, tmp_path / "parts", end=12, start=half)
    _, whole, expected = trained(cfg, tmp_path / "whole", end=12)
    assert parts["global_step"] == whole["global_step"] == 12
    for name, weights in whole["state_dict"].items():
        assert torch.equal(weights, parts["state_dict"][name]), name
    assert score == expected


def test_the_learning_rate_is_the_members_own_and_the_schedule_goes_on(donor, tmp_path):
    path, _, _ = donor
    lr, steps = 0.03, 12
    _, went_on, _ = trained(composed(tmp_path, f"lr={lr}"), tmp_path / "own", end=8, start=path)
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
    own = {}
    for weight in (1.0, 4.0, 7.0):
        cfg = composed(tmp_path, f"sobolev.weight={weight}")
        _, own[weight], _ = trained(cfg, tmp_path / f"w{weight}", end=6, start=path)
    after = {weight: own[weight]["callbacks"][key] for weight in own}
    assert after[1.0]["counter"] == before["callbacks"][key]["counter"] + 1
    # One more batch in the mean: the scale went on from the donor's and knows nothing of weights.
    assert after[1.0]["scales"] == after[4.0]["scales"]
    count = before["callbacks"][key]["scales"]["order_1"]["count"]
    assert after[1.0]["scales"]["order_1"]["count"] == count + 1
    # exp_avg' = 0.9 exp_avg + 0.1 (g_value + w g_term): two weights give the gradients of both.
    moments = {w: own[w]["optimizer_states"][0]["state"][0]["exp_avg"].double() for w in own}
    slope = (moments[4.0] - moments[1.0]) / 3
    assert slope.abs().max() > 0
    torch.testing.assert_close(moments[7.0], moments[1.0] + 6 * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sobolev", ["none", "order1"])
def test_what_diverges_scores_nan(sobolev, tmp_path):
    cfg = composed(tmp_path, "lr=1e30", f"sobolev={sobolev}")
    assert math.isnan(train_interval(cfg, tmp_path, 0, 12, resume=False))


def test_the_teacher_is_checked_in_the_first_interval_alone(donor, tmp_path):
    refuses = {"verify": {"_target_": "tests.experiments.tune._search.Refuses"}}
    cfg = composed(tmp_path, callbacks=refuses)
    with pytest.raises(RuntimeError, match="asked"):
        train_interval(cfg, tmp_path / "first", 0, 1, resume=False)
    trained(cfg, tmp_path / "later", end=6, start=donor[0])


def test_a_score_of_the_test_is_taken_at_the_validation_points(tmp_path):
    # In the toy these are the points of val/error.
    by = [composed(tmp_path, score={"metric": metric}) for metric in ("val/error", "test/error")]
    one, two = (train_interval(c, tmp_path / c.score.metric, 0, 2, resume=False) for c in by)
    assert one == pytest.approx(two, rel=1e-6)


def test_members_begin_with_weights_of_their_own_and_the_same_data(tmp_path):
    cfg = composed(tmp_path)
    scores = [train_interval(cfg, tmp_path / str(m), m, 1, resume=False) for m in (0, 1)]
    assert scores[0] != scores[1]


def test_a_score_that_nobody_logs_is_refused(tmp_path):
    cfg = composed(tmp_path, score={"metric": "test/nothing"})
    with pytest.raises(ValueError, match=r"metric must be one of \['test/error'.*'test/noth"):
        train_interval(cfg, tmp_path, 0, 1, resume=False)
