import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.testing import assert_close

from lightning_sobolev.atari import Behavior
from lightning_sobolev.policies import DiscreteHead, EnvSettings, GaussianHead, Head
from tests.policies._policies import small_policy

GAUSSIAN = GaussianHead((-2.0, -1.0, 0.0), (2.0, 3.0, 1.0))
ROWS, DIMS = 7, 3


def answers(generator, spread=1.0):
    return spread * torch.randn(ROWS, 2 * DIMS, generator=generator, dtype=torch.float64)


def normal(answers):
    mean, log_std = answers.chunk(2, -1)
    return Independent(Normal(mean, log_std.exp()), 1)


def test_the_divergence_of_gaussians_is_that_of_their_distributions(generator):
    student, teacher = answers(generator), answers(generator)
    expected = kl_divergence(normal(teacher), normal(student))
    assert_close(GAUSSIAN.divergence(student, teacher), expected)
    assert_close(GAUSSIAN.loss("kl")(student, teacher), expected)
    back = kl_divergence(normal(student), normal(teacher))
    assert_close(GAUSSIAN.loss("reverse_kl")(student, teacher), back)
    entropy = normal(teacher).entropy()
    assert_close(GAUSSIAN.loss("cross_entropy")(student, teacher), expected + entropy)
    assert_close(GAUSSIAN.divergence(teacher, teacher), torch.zeros(ROWS, dtype=torch.float64))


def test_half_the_squared_difference_of_matched_outputs_is_the_divergence_nearby(generator):
    teacher = answers(generator)
    teacher[:, DIMS:] = teacher[0, DIMS:]  # deviations that are the same in every state
    head = GaussianHead(GAUSSIAN.low, GAUSSIAN.high, units=tuple(teacher[0, DIMS:].exp().tolist()))
    student = teacher + answers(generator, 1e-4)
    squared = (head.compared(student) - head.compared(teacher)).square().sum(-1)
    assert_close(squared / 2, head.divergence(student, teacher), rtol=1e-3, atol=0)


def test_the_distance_of_means_is_in_the_teachers_deviations(generator):
    student, teacher = answers(generator), answers(generator)
    scaled = (student[:, :DIMS] - teacher[:, :DIMS]) / teacher[:, DIMS:].exp()
    assert_close(GAUSSIAN.disagreement(student, teacher), scaled.norm(dim=-1))


def test_the_divergence_of_choices_is_that_of_their_distributions(generator):
    logits = [torch.randn(ROWS, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    head = DiscreteHead(4)
    student, teacher = map(head.answers, logits)
    expected = kl_divergence(*(Categorical(logits=one) for one in reversed(logits)))
    assert_close(head.divergence(student, teacher), expected)
    assert_close(head.compared(logits[0]), torch.log_softmax(logits[0], -1))
    differ = logits[0].argmax(-1) != logits[1].argmax(-1)
    assert_close(head.disagreement(student, teacher), differ.double())


def test_actions_are_drawn_as_the_policy_says():
    mean, log_std = np.array([0.5, -1.0, 0.2]), np.array([0.3, -0.5, -2.0])
    rows = np.tile(np.concatenate([mean, log_std]).astype(np.float32), (20_000, 1))
    drawn = GAUSSIAN.choose(rows, np.random.default_rng(0))
    deviations = np.exp(log_std)
    # five standard errors
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * deviations.max() / 20_000**0.5)
    np.testing.assert_allclose(drawn.std(0), deviations, rtol=5 / 40_000**0.5)
    np.testing.assert_array_equal(GAUSSIAN.choose(rows[:2], None), rows[:2, :3])
    hot = GAUSSIAN.decide(Behavior(temperature=4.0), rows, None, np.random.default_rng(0))
    np.testing.assert_allclose(hot - mean, 2 * (drawn - mean), rtol=1e-4, atol=1e-5)


def test_the_environment_is_given_what_lies_within_the_bounds():
    drawn = np.array([[-5.0, 0.5, 2.0], [1.0, 9.0, -1.0]], np.float32)
    clipped = np.array([[-2.0, 0.5, 1.0], [1.0, 3.0, 0.0]], np.float32)
    np.testing.assert_array_equal(GAUSSIAN.actions(drawn), clipped)
    squashed = GaussianHead(GAUSSIAN.low, GAUSSIAN.high, squash=True).actions(drawn)
    low, high = np.array(GAUSSIAN.low), np.array(GAUSSIAN.high)
    np.testing.assert_allclose(squashed, low + (high - low) * (np.tanh(drawn) + 1) / 2, rtol=1e-6)
    np.testing.assert_array_equal(DiscreteHead(3, start=2).actions(np.array([0, 2])), [2, 4])


@pytest.mark.parametrize("squash", [False, True])
def test_strays_are_drawn_evenly_within_the_bounds(squash):
    head = GaussianHead(GAUSSIAN.low, GAUSSIAN.high, squash)
    rows = np.zeros((20_000, 2 * DIMS), np.float32)
    stray = Behavior(epsilon=1.0)
    actions = head.actions(head.decide(stray, rows, None, np.random.default_rng(0)))
    low, high = np.array(head.low), np.array(head.high)
    error = 5 * (high - low) / (12 * 20_000) ** 0.5
    assert (np.abs(actions.mean(0) - (low + high) / 2) < error).all()
    np.testing.assert_allclose(actions.std(0), (high - low) / 12**0.5, rtol=0.03)
    unbounded = GaussianHead((-np.inf,), (np.inf,))
    with pytest.raises(ValueError, match="epsilon must be 0 where actions have no bounds"):
        unbounded.decide(stray, rows[:, :2], None, np.random.default_rng(0))


def test_a_players_share_of_the_decisions_is_what_beta_leaves():
    teacher, player = (np.full((20_000, 2), value, np.float32) for value in (1.0, -1.0))
    head = GaussianHead((-1.0,), (1.0,))
    decided = head.decide(
        Behavior(beta=0.3, greedy=True), teacher, player, np.random.default_rng(0)
    )
    assert (decided > 0).mean() == pytest.approx(0.3, abs=5 * (0.21 / 20_000) ** 0.5)


def test_the_head_follows_from_the_environment():
    assert Head.for_env(EnvSettings("CartPole-v1")) == DiscreteHead(2)
    settings = EnvSettings("Pendulum-v1")
    assert Head.for_env(settings) == GaussianHead((-2.0,), (2.0,))
    teacher = small_policy(3, 2, deviations="constant")
    with torch.no_grad():
        teacher.log_std.fill_(-1.0)
    assert Head.for_env(settings, teacher).units == pytest.approx((np.exp(-1.0),))
    # of deviations that depend on the state there are no units
    clamped = small_policy(3, 2, deviations="clamped")
    assert Head.for_env(settings, clamped).match == "identity"
    with pytest.raises(ValueError, match=r"network must have 2 outputs .*got 3"):
        DiscreteHead(2).check(3, "network")
