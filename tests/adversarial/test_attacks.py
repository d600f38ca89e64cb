"""Gradient attacks on networks whose worst case is known."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.adversarial import GradientAttack


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.3
    return images, torch.arange(6) % 2


def _linear(classes=2):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()


def _worst(model, images, labels, radius):
    """The vertex of the ball that a linear two-class network likes least."""
    weight = model[1].weight
    towards = weight[1 - labels] - weight[labels]
    return images + radius * towards.sign().reshape(images.shape)


@pytest.mark.parametrize(
    "attack",
    [GradientAttack.fgsm(0.1), GradientAttack(radius=0.1, steps=9), GradientAttack(radius=0.1)],
    ids=["fgsm", "pgd-9", "pgd-7"],
)
def test_the_worst_point_of_a_linear_network_is_found(batch, attack):
    images, labels = batch
    model = _linear()
    if attack.steps == 7:  # from the far side, seven quarter radii do not always reach the vertex
        attack = GradientAttack(radius=0.1, steps=7, step_size=0.05)
    attacked = attack(model, images, labels, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(attacked, _worst(model, images, labels, 0.1))


def test_nothing_leaves_the_ball_or_the_bounds(batch):
    _, labels = batch
    images = torch.rand(6, 1, 4, 4).round() * 0.98
    attacked = GradientAttack(radius=0.3, steps=3)(_linear(3).float(), images, labels)
    assert (attacked - images).abs().max() <= 0.3 + 1e-6
    assert attacked.min() >= 0.0
    assert attacked.max() <= 1.0


def test_the_loss_rises_and_no_parameter_gets_a_gradient(batch):
    images, labels = batch
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():  # as in a validation
        attacked = GradientAttack(radius=0.2)(model, images, labels)
    before, after = (cross_entropy(model(x), labels) for x in (images, attacked))
    assert after > before
    assert not attacked.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_is_attacked_by_itself(batch):
    images, labels = batch
    model = _linear(3)
    attack = GradientAttack(radius=0.05, steps=3, random_start=False)
    alone = torch.cat([attack(model, images[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(attack(model, images, labels), alone)


class _Wavering(nn.Module):
    """A linear network whose gradient turns around in one pass of three."""

    def __init__(self):
        super().__init__()
        self.linear = _linear()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.linear(x) * (-0.15 if self.passes % 3 == 1 else 0.1)  # small: no saturation


def test_the_gradient_of_a_random_network_is_averaged(batch):
    images, labels = batch
    attack = GradientAttack.fgsm(0.1, draws=3)
    model = _Wavering()
    torch.testing.assert_close(
        attack(model, images, labels), _worst(model.linear, images, labels, 0.1)
    )
    assert model.passes == 3


def test_the_start_is_drawn_from_the_generator(batch):
    images, labels = batch
    attack = GradientAttack(radius=0.2, steps=1, step_size=0.01)
    first, again, other = (
        attack(_linear(3), images, labels, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.0}, "radius must be above 0, got 0.0"),
        ({"radius": 0.1, "steps": 0}, "steps must be at least 1, got 0"),
        ({"radius": 0.1, "step_size": -1.0}, "step_size must be above 0 or None, got -1.0"),
        ({"radius": 0.1, "draws": 0}, "draws must be at least 1, got 0"),
        ({"radius": 0.1, "bounds": (1.0, 0.0)}, "bounds must be"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GradientAttack(**settings)


def test_images_and_labels_are_checked(batch):
    images, labels = batch
    with pytest.raises(ValueError, match="images must be within bounds"):
        GradientAttack(radius=0.1)(_linear(), images * 255, labels)
    with pytest.raises(ValueError, match=r"labels must be of shape \[6\]"):
        GradientAttack(radius=0.1)(_linear(), images, labels[:2])
