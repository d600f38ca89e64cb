import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    Behavior,
    CenteredPolicy,
    Environments,
    SmallCNN,
    log_probabilities,
    on_policy_answers,
    record,
)
from lightning_sobolev.atari.policy import decide

DRAWS = 40_000
# five standard errors of a share among so many draws
BOUND = 5 * math.sqrt(0.25 / DRAWS)


def rng(seed=0):
    return np.random.default_rng(seed)


def log_softmax(logits):
    return torch.tensor(logits, dtype=torch.float32).log_softmax(-1).numpy()


TEACHER = log_softmax([2.0, 0.0, -1.0])
PLAYER = log_softmax([-3.0, 1.0, 1.5])


def shares(behavior, player=None):
    """How often each action is chosen in one state."""
    many = [None if one is None else np.tile(one, (DRAWS, 1)) for one in (TEACHER, player)]
    return np.bincount(decide(behavior, *many, rng()), minlength=3) / DRAWS


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_temperature_sharpens_and_flattens(temperature):
    expected = np.exp(TEACHER / temperature)
    np.testing.assert_allclose(
        shares(Behavior(temperature=temperature)), expected / expected.sum(), atol=BOUND
    )


@pytest.mark.parametrize("greedy", [False, True])
def test_epsilon_mixes_with_even_draws(greedy):
    plain = np.array([1.0, 0.0, 0.0]) if greedy else np.exp(TEACHER)
    found = shares(Behavior(epsilon=0.3, greedy=greedy))
    np.testing.assert_allclose(found, 0.7 * plain + 0.3 / 3, atol=BOUND)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_teacher_takes_its_share_of_the_decisions(share):
    found = shares(Behavior(beta=share), PLAYER)
    expected = share * np.exp(TEACHER) + (1 - share) * np.exp(PLAYER)
    np.testing.assert_allclose(found, expected, atol=BOUND)


def test_temperature_and_epsilon_hold_for_the_player_too():
    found = shares(Behavior(beta=0.0, temperature=0.5, epsilon=0.1), PLAYER)
    sharp = np.exp(2 * PLAYER)
    np.testing.assert_allclose(found, 0.9 * sharp / sharp.sum() + 0.1 / 3, atol=BOUND)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        ({"temperature": math.nan}, "temperature must be positive and finite, got nan"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\], got -0.1"),
        ({"greedy": True, "temperature": 2.0}, "temperature must be 1 for a greedy policy"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Behavior(**change)


@pytest.mark.parametrize(("share", "given"), [(1.0, True), (0.5, False)])
def test_a_player_that_never_acts_and_a_missing_one_are_refused(
    tmp_path, settings, teacher, share, given
):
    with pytest.raises(ValueError, match="player must be given exactly where beta"):
        record(
            tmp_path / "pong",
            settings,
            teacher,
            num_states=8,
            behavior=Behavior(beta=share),
            player=teacher if given else None,
        )


@pytest.fixture(scope="module")
def student():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        policy = SmallCNN(6).to(torch.float32)
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([0.0, -9, 9, -9, -9, -9]))
    return CenteredPolicy(policy)


def test_a_student_plays_and_the_teacher_answers(tmp_path, settings, teacher, student):
    made = record(
        tmp_path / "pong",
        settings,
        teacher,
        num_states=90,
        behavior=Behavior(beta=0.0),
        player=student,
    )
    assert (made.states["action"] == 2).all()
    expected = log_probabilities(teacher, made.stacks(np.arange(made.num_states)))
    assert_close(torch.from_numpy(made.log_probs), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_a_mixed_recording_goes_on_as_if_never_stopped(tmp_path, settings, teacher, student):
    options = {"behavior": Behavior(beta=0.5, epsilon=0.2), "player": student}
    whole = record(tmp_path / "whole", settings, teacher, num_states=90, **options)
    record(tmp_path / "grown", settings, teacher, num_states=50, **options)
    grown = record(tmp_path / "grown", settings, teacher, num_states=90, **options)
    np.testing.assert_array_equal(grown.states, whole.states)
    assert len(np.unique(whole.states["action"])) > 2


def test_a_player_for_another_game_is_refused(tmp_path, settings, teacher):
    with pytest.raises(ValueError, match="player must have 6 outputs for pong"):
        record(
            tmp_path / "pong",
            settings,
            teacher,
            num_states=8,
            behavior=Behavior(beta=0.0),
            player=SmallCNN(4),
        )


def test_answers_on_policy_are_those_of_both_where_the_player_goes(settings, teacher, student):
    seen = on_policy_answers(student, teacher, settings, num_states=60, seed=4)
    environments = Environments(settings, 4)
    stacks = environments.reset()
    for step in range(30):
        for who, network in (("player", student), ("teacher", teacher)):
            expected = log_probabilities(network, stacks)
            np.testing.assert_array_equal(getattr(seen, who)[step], expected)
        stacks = environments.step(np.array([2, 2])).stacks  # what this student does everywhere


def test_comparing_nothing_is_refused(teacher):
    with pytest.raises(ValueError, match="num_states must be at least 1, got 0"):
        on_policy_answers(teacher, teacher, AtariSettings("pong"), num_states=0)
