import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_sobolev.atari import AtariSettings, on_policy_answers, play
from lightning_sobolev.experiments.distillation import played as played_module
from lightning_sobolev.experiments.distillation.callbacks import OnPolicyKL, PlayGame
from lightning_sobolev.experiments.distillation.teacher import returns_of
from tests.experiments.distillation.conftest import module_of, results_of

SETTINGS = AtariSettings("pong", num_envs=3, max_num_frames_per_episode=60)
# to the end, so that there is something to lose
WHOLE = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=400)


def test_returns_are_those_of_playing_to_the_last_digit(networks, tmp_path, monkeypatch):
    game = PlayGame(WHOLE, tmp_path / "returns", num_episodes=3, seed=5)
    found = results_of(module_of(*networks), [game], tmp_path)
    assert len([key for key in found if "_return" in key]) == 8
    for key, network in zip(("student_return", "teacher_return_greedy"), networks, strict=True):
        greedy = key.endswith("greedy")
        played = play(network, WHOLE, num_episodes=3, greedy=greedy, seed=5)
        assert found[f"test/{key}"] == played.mean < 0
        assert found[f"test/{key}_standard_error"] == played.standard_error
    # the teacher's games are looked up from now on, the student's are played
    monkeypatch.setattr(played_module, "play", None)
    games = {"num_episodes": 3, "greedy": True, "seed": 5}
    numbers = returns_of(networks[1], "teacher", WHOLE, cache=tmp_path / "returns", **games)
    assert numbers["teacher"] == found["test/teacher_return_greedy"]


def test_means_and_errors_are_over_games(networks, tmp_path):
    compare = OnPolicyKL(SETTINGS, num_states=60, seed=7)
    found = results_of(module_of(*networks), [compare], tmp_path)
    answers = on_policy_answers(*networks, SETTINGS, num_states=60, seed=7)
    p, q = (one.astype(np.float64) for one in (answers.teacher, answers.player))
    games = (np.exp(p) * (p - q)).sum(-1).mean(0)
    assert found["test/visited_kl"] == pytest.approx(games.mean(), rel=1e-12)
    error = games.std(ddof=1) / math.sqrt(3)
    assert found["test/visited_kl_standard_error"] == pytest.approx(error, rel=1e-12)
    differ = (p.argmax(-1) != q.argmax(-1)).mean()
    assert found["test/visited_disagreement"] == pytest.approx(differ)


def test_one_game_has_no_error_and_none_plays_nothing(networks, tmp_path):
    compare = OnPolicyKL(replace(SETTINGS, num_envs=1), num_states=8)
    found = results_of(module_of(networks[0], networks[0]), [compare], tmp_path)
    assert found["test/visited_kl"] == pytest.approx(0.0, abs=1e-7)
    assert found["test/visited_disagreement"] == 0.0
    assert math.isnan(found["test/visited_kl_standard_error"])
    nothing = [PlayGame(SETTINGS, tmp_path, num_episodes=0), OnPolicyKL(SETTINGS, num_states=0)]
    found = results_of(module_of(networks[0]), nothing, tmp_path)
    assert not [key for key in found if "return" in key or "visited" in key]


def test_what_cannot_be_compared_is_named(networks, tmp_path):
    with pytest.raises(ValueError, match=r"must have a NetworkTeacher .*got teacher=NoneType"):
        results_of(module_of(networks[0]), [OnPolicyKL(SETTINGS, num_states=4)], tmp_path)
