"""Policies over vector observations distilled from the configuration, cut short."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.distillation.stored import film_stored, play_stored
from lightning_sobolev.experiments.run.stored import load_module
from lightning_sobolev.experiments.run.train import run
from lightning_sobolev.policies import PolicyRecording, load_policy
from tests.policies._policies import sb3_model

QUICK = (
    "+experiment=distill_policy",
    "env=gymnasium",
    "scale=smoke",
    "steps=12",
    "data.sizes.train=100",
    "data.sizes.test=40",
    "data.sizes.validation=20",
    "data.batch_size=16",
    "env.settings.num_envs=2",
    "sizes.smoke.max_episode_steps=60",
)
CARTPOLE, PENDULUM = (f"env.id={name}-v1" for name in ("CartPole", "Pendulum"))
SHARED = {"kl", "derivative_nmse", "derivative_cosine", "student_return", "teacher_return"}


def dense_errors(module, x):
    """Return the relative squared error, and the mean cosine over outputs that depend on x."""
    net, teacher, head = module.net.double(), module.players["teacher"].double(), module.head
    z = net.standardized(x)

    def told(point):
        raw = point * net.std[net.sees] + net.mean[net.sees]
        return head.compared(teacher(x.index_copy(1, net.sees, raw))).sum(0)

    jacobian = torch.autograd.functional.jacobian
    theirs, ours = jacobian(told, z), jacobian(lambda p: head.compared(net.body(p)).sum(0), z)
    told = theirs.abs().amax((1, 2)) > 0
    cosine = torch.cosine_similarity(ours[told], theirs[told], dim=-1).mean()
    return float((ours - theirs).square().sum() / theirs.square().sum()), float(cosine)


@pytest.mark.parametrize(
    ("env", "sees", "measured"),
    [
        (CARTPOLE, None, {"action_disagreement", "merged_disagreement", "visited_disagreement"}),
        (PENDULUM, None, {"action_distance", "visited_distance"}),
        (PENDULUM, [0, 2], {"action_distance", "visited_distance"}),
    ],
    ids=["choice", "gaussian", "privileged"],
)
def test_a_teacher_is_recorded_and_distilled(env, sees, measured, finished):
    cfg, metrics = finished(*QUICK, env, f"env.student_sees={json.dumps(sees)}".replace(" ", ""))
    wanted = {f"test/{name}" for name in SHARED | measured}
    assert wanted <= set(metrics)
    assert np.isfinite([metrics[name] for name in wanted]).all()
    assert metrics["train_states"] == 100
    card = json.loads((Path(cfg.run_dir) / "teacher.json").read_text())
    assert card["environment"]["id"] == cfg.env.id
    # the stored student answers as the one that was tested
    module = load_module(cfg.run_dir)
    recording = PolicyRecording(Path(cfg.data.root) / cfg.env.id)
    lengths = np.cumsum(recording.episode_lengths[0])
    test = lengths[np.searchsorted(lengths, 40)]
    rows = np.linspace(0, test - 1, 40).round().astype(int)
    x = torch.from_numpy(recording.observations[rows])
    theirs = torch.from_numpy(recording.answers[rows])
    divergence = module.head.divergence(module(x).detach().double(), theirs.double()).mean()
    assert metrics["test/kl"] == pytest.approx(float(divergence), rel=1e-5)
    error, cosine = dense_errors(module, x.double())
    assert metrics["test/derivative_nmse"] == pytest.approx(error, rel=1e-4)
    assert metrics["test/derivative_cosine"] == pytest.approx(cosine, rel=1e-4)
    assert not torch.equal(module.net.std, torch.ones_like(module.net.std))


def test_training_on_values_alone_needs_no_derivative(composed):
    assert run(composed(*QUICK, CARTPOLE, "sobolev=none"))["steps"] == 12


@pytest.mark.parametrize("sees", ["null", "[0,2]"])
def test_the_student_visits_and_the_teacher_answers(sees, composed):
    dagger = ("callbacks=dagger", "callbacks.dagger.rounds=2", "callbacks.dagger.num_states=30")
    cfg = composed(*QUICK, CARTPOLE, f"env.student_sees={sees}", *dagger)
    assert run(cfg)["train_states"] == 130
    (index,) = Path(cfg.data.root).glob("CartPole-v1_dagger/*/index.json")
    visited = PolicyRecording(index.parent)
    assert visited.identity["player_sha256"] is not None
    assert visited.observations.shape[1] == 4
    teacher, _ = load_policy("CartPole-v1", visited.settings)
    with torch.no_grad():
        answers = torch.log_softmax(teacher(torch.from_numpy(visited.observations)), -1)
    assert_close(torch.from_numpy(visited.answers), answers)


def test_somebody_elses_teacher_is_replayed_and_distilled(composed, tmp_path):
    sb3_model("a2c", "Pendulum-v1").save(tmp_path / "model.zip")
    theirs = ("teacher=policy_sb3", f"teacher.agent.source={tmp_path}/model.zip")
    theirs = (*QUICK, PENDULUM, *theirs, "verify.num_episodes=2")
    with pytest.raises(ValueError, match=r"must return at least 0 in Pendulum-v1"):
        run(composed(*theirs, "verify.min_return=0", name="refused"))
    metrics = run(composed(*theirs, "sizes.smoke.num_episodes=0", name="taken"))
    assert metrics["verify/teacher_return"] < 0
    assert "test/student_return" not in metrics


def test_a_network_of_ones_own_is_distilled(composed):
    own = ("teacher=policy_module", "verify.num_episodes=0", "callbacks=best")
    target = "teacher.agent._target_=tests.policies._policies.small_policy"
    cfg = composed(*QUICK, CARTPOLE, *own, target)
    assert run(cfg)["test/kl"] > 0
    assert not (Path(cfg.run_dir) / "teacher.json").exists()


def test_stored_students_play_again(finished, tmp_path):
    cfg, metrics = finished(*QUICK, CARTPOLE)
    runs = tmp_path / "runs"
    Path(cfg.run_dir).rename(runs / "0")
    (table,) = play_stored(runs, runs, num_episodes=2)
    lines = pd.read_csv(table)
    assert set(lines["game"]) == {"CartPole-v1"}
    for line, way in zip(lines.itertuples(), ("", "_greedy"), strict=True):
        assert line.student_return == pytest.approx(metrics[f"test/student_return{way}"])
    with pytest.raises(ValueError, match="must be a run in a game, which has frames"):
        list(film_stored(runs))
