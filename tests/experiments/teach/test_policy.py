import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

from lightning_sobolev.experiments.teach.policy import NatureFeatures, network_of

SPACE = spaces.Box(0, 255, (4, 84, 84), "uint8")


def frames(generator, count=8):
    return torch.randint(0, 256, (count, 4, 84, 84), generator=generator, dtype=torch.uint8)


def test_bfloat16_stays_inside_the_body(generator):
    exact, rough = (NatureFeatures(SPACE, autocast=autocast) for autocast in (False, True))
    rough.load_state_dict(exact.state_dict())
    x = frames(generator) / 255
    features = rough(x)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact(x))
    assert_close(features, exact(x), rtol=0.05, atol=0.01)
    features.sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in rough.parameters())


def test_probabilities_sum_to_one_under_bfloat16(small_learner, generator):
    policy = small_learner("bf16-mixed").policy
    x = frames(generator)
    total = sum(policy.evaluate_actions(x, torch.full((8,), a))[1].exp() for a in range(4))
    assert_close(total, torch.ones(8), rtol=1e-5, atol=1e-5)


def test_exported_network_answers_as_the_policy(small_learner, generator):
    policy = small_learner().policy
    torch.nn.init.normal_(policy.action_net.weight)
    x = frames(generator)
    expected = policy.get_distribution(x).distribution.logits
    with torch.no_grad():
        answer = torch.log_softmax(network_of(policy)(x / 255), dim=-1)
    assert_close(answer, expected.detach())


def test_schedules_fall_in_a_straight_line(small_learner):
    learner = small_learner(learning_rate=1e-3, clip_range=0.2)
    assert [learner.lr_schedule(left) for left in (1.0, 0.25, 0.0)] == [1e-3, 2.5e-4, 0.0]
    assert learner.clip_range(0.5) == pytest.approx(0.1)


def test_any_other_setting_of_the_learner_can_be_given(small_learner):
    assert small_learner(target_kl=0.03).target_kl == 0.03


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_steps", 0, "n_steps must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
        ("gamma", 1.5, r"gamma must be in 0\.\.1, got 1.5"),
        ("precision", "16", "precision must be one of auto, bf16-mixed, 32-true, got '16'"),
        ("batch_size", 10, "batch_size must divide the 16 states of an update"),
    ],
)
def test_settings_out_of_range_are_refused(small_learner, name, value, message):
    with pytest.raises(ValueError, match=message):
        small_learner(**{name: value})


@pytest.mark.parametrize("has_it", [True, False])
def test_precision_is_decided_by_the_hardware_where_it_is_left_open(
    small_learner, monkeypatch, has_it
):
    found = {"amx_bf16": has_it}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert small_learner("auto").policy.features_extractor.autocast is has_it
    assert not small_learner("32-true").policy.features_extractor.autocast
