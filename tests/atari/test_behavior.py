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
    ForeignAgent,
    load_agent,
    log_probabilities,
    on_policy_answers,
    record,
)
from lightning_sobolev.atari.policy import decide

DRAWS = 40_000
TEACHER, PLAYER = (
    torch.tensor(logits).log_softmax(-1).numpy() for logits in ([2.0, 0.0, -1.0], [-3.0, 1.0, 1.5])
)


@pytest.mark.parametrize(
    ("behavior", "has_player"),
    [
        (Behavior(temperature=0.25), False),
        (Behavior(temperature=3.0), False),
        (Behavior(epsilon=0.3), False),
        (Behavior(epsilon=0.3, greedy=True), False),
        (Behavior(beta=0.25), True),
        (Behavior(beta=0.0, temperature=0.5, epsilon=0.1), True),
    ],
)
def test_actions_are_chosen_with_their_probabilities(behavior, has_player):
    def policy(log_probs):
        if behavior.greedy:
            return np.eye(3)[log_probs.argmax()]
        sharp = np.exp(log_probs / behavior.temperature)
        return sharp / sharp.sum()

    mixed = behavior.beta * policy(TEACHER) + (1 - behavior.beta) * policy(PLAYER)
    expected = (1 - behavior.epsilon) * mixed + behavior.epsilon / 3
    teacher, player = (np.tile(one, (DRAWS, 1)) for one in (TEACHER, PLAYER))
    chosen = decide(behavior, teacher, player if has_player else None, np.random.default_rng(0))
    # five standard errors of a share among so many draws
    bound = 5 * math.sqrt(0.25 / DRAWS)
    np.testing.assert_allclose(np.bincount(chosen, minlength=3) / DRAWS, expected, atol=bound)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": math.nan}, "temperature must be a positive number, got nan"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\], got -0.1"),
        ({"greedy": True, "temperature": 2.0}, "temperature must be 1 for a greedy policy"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Behavior(**change)


@pytest.mark.parametrize(
    ("beta", "num_actions", "message"),
    [
        (1.0, 6, "player must be given exactly where beta is below 1, got a player"),
        (0.5, None, "player must be given exactly where beta is below 1, got no player"),
        (0.0, 4, "player must have 6 outputs for pong"),
    ],
)
def test_a_player_that_cannot_act_is_refused(
    tmp_path, settings, small_teacher, beta, num_actions, message
):
    options = {"behavior": Behavior(beta=beta)}
    options["player"] = None if num_actions is None else small_teacher(num_actions)
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "pong", settings, small_teacher(), num_states=8, **options)


@pytest.fixture(scope="module")
def student(small_teacher):
    policy = small_teacher(seed=3)
    with torch.no_grad():
        policy.head.weight.div_(20)
        policy.head.bias.copy_(torch.tensor([0.0, -9, 9, -9, -9, -9]))
    return CenteredPolicy(policy)


def test_a_student_plays_and_the_teacher_answers(tmp_path, settings, teacher, student):
    options = {"behavior": Behavior(beta=0.0), "player": student}
    made = record(tmp_path / "pong", settings, teacher, num_states=90, **options)
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


def test_answers_on_policy_are_those_of_both_where_the_player_goes(settings, teacher, student):
    seen = on_policy_answers(student, teacher, settings, num_states=60, seed=4)
    environments = Environments(settings, 4)
    stacks = environments.reset()
    for step in range(30):
        for who, network in (("player", student), ("teacher", teacher)):
            expected = log_probabilities(network, stacks)
            np.testing.assert_array_equal(getattr(seen, who)[step], expected)
        stacks = environments.step(np.array([2, 2])).stacks  # what this student does everywhere
    with pytest.raises(ValueError, match="num_states must be at least 1, got 0"):
        on_policy_answers(teacher, teacher, AtariSettings("pong"), num_states=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_agent(None), "agent must be a name, a file or a ForeignAgent, got None"),
        (lambda: ForeignAgent(3), "source must be a file or hf://..., got 3"),
        (lambda: ForeignAgent("a.zip", temperature="hot"), "temperature must be a positive number"),
        (lambda: Behavior(temperature="hot"), "temperature must be a positive number, got 'hot'"),
        (lambda: Behavior(epsilon="half"), r"epsilon must be in \[0, 1\], got 'half'"),
    ],
)
def test_values_of_another_kind_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
