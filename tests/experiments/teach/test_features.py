import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import NatureCNN as TheirNatureCNN
from torch.testing import assert_close

from lightning_sobolev.experiments.teach.features import PixelFeatures, network_of
from lightning_sobolev.experiments.teach.settings import Limits, PPOSettings, uses_bfloat16

SPACE = spaces.Box(0, 255, (4, 84, 84), "uint8")


def pictures(generator, count=8):
    return torch.randint(0, 256, (count, 4, 84, 84), generator=generator, dtype=torch.uint8)


def test_features_are_those_of_their_network(generator):
    ours, theirs = PixelFeatures(SPACE, autocast=False), TheirNatureCNN(SPACE)
    weights = [*theirs.cnn.state_dict().values(), *theirs.linear.state_dict().values()]
    ours.body.load_state_dict(dict(zip(ours.body.state_dict(), weights, strict=True)))
    x = pictures(generator) / 255
    assert_close(ours(x), theirs(x))
    assert ours.features_dim == theirs.features_dim


def test_bfloat16_stays_inside_the_body(generator):
    exact, rough = (PixelFeatures(SPACE, autocast=autocast) for autocast in (False, True))
    rough.load_state_dict(exact.state_dict())
    x = pictures(generator) / 255
    features = rough(x)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact(x))
    assert_close(features, exact(x), rtol=0.05, atol=0.01)
    features.sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in rough.parameters())


def test_probabilities_sum_to_one_under_bfloat16(small_learner, generator):
    policy = small_learner(precision="bf16-mixed").policy
    x = pictures(generator)
    total = sum(policy.evaluate_actions(x, torch.full((8,), a))[1].exp() for a in range(4))
    assert_close(total, torch.ones(8), rtol=1e-5, atol=1e-5)


def test_exported_network_answers_as_the_policy(small_learner, generator):
    policy = small_learner().policy
    torch.nn.init.normal_(policy.action_net.weight)
    x = pictures(generator)
    expected = policy.get_distribution(x).distribution.logits
    with torch.no_grad():
        answer = torch.log_softmax(network_of(policy)(x / 255), dim=-1)
    assert_close(answer, expected.detach())


def test_a_policy_of_another_build_is_refused(small_learner):
    learner = small_learner()
    theirs = type(learner)("CnnPolicy", learner.env, n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match=r"policy must have PixelFeatures.*got NatureCNN"):
        network_of(theirs.policy)


def test_schedules_fall_in_a_straight_line(small_learner):
    learner = small_learner(learning_rate=1e-3, clip_range=0.2)
    assert [learner.lr_schedule(left) for left in (1.0, 0.25, 0.0)] == [1e-3, 2.5e-4, 0.0]
    assert learner.clip_range(0.5) == pytest.approx(0.1)


def test_an_update_must_consist_of_whole_mini_batches(small_learner):
    with pytest.raises(ValueError, match="batch_size must divide the 16 states of an update"):
        small_learner(batch_size=10)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_steps", 0, "n_steps must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
        ("gamma", 1.5, r"gamma must lie in 0\.\.1, got 1.5"),
        ("precision", "16", "precision must be one of auto, bf16-mixed, 32-true, got '16'"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        PPOSettings(**{name: value})


def test_a_run_needs_time():
    with pytest.raises(ValueError, match="max_minutes must be positive or null, got 0"):
        Limits(max_minutes=0)


def test_precision_is_decided_by_the_hardware_only_where_it_is_left_open(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert uses_bfloat16("auto", cpu)
    assert not uses_bfloat16("32-true", cpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not uses_bfloat16("auto", cpu)
    assert uses_bfloat16("bf16-mixed", cpu)
