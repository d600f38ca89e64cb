"""Particle swarms on networks whose best answer is known."""

import pytest
import torch
from torch import nn

from lightning_sobolev.adversarial import ParticleSwarm
from lightning_sobolev.adversarial.fisher import class_gradients

pytestmark = pytest.mark.usefixtures("float64")
TARGETS = torch.tensor([1, 0, 1])


@pytest.fixture
def images(generator):
    return torch.rand(3, 1, 2, 3, generator=generator) * 0.2 + 0.4


def linear(classes=2, gain=4.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, classes))
    model[1].weight.data *= gain
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # undecided in the middle of the bounds
    return model.requires_grad_(False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smallest_change(model, images, targets, radius):
    """Return the smallest |change|_1 that turns a linear network of two classes."""
    least = []
    # the largest weights first: they need the smallest change
    for image, target in zip(images.flatten(1), targets, strict=True):
        weight = model[1].weight[target] - model[1].weight[1 - target]
        gap = -(weight @ image + model[1].bias[target] - model[1].bias[1 - target])
        used = torch.zeros(())
        for size in weight.abs().sort(descending=True).values:
            step = (gap / size).clamp(0, radius)
            used, gap = used + step, gap - step * size
        least.append(used if gap < 1e-9 else torch.tensor(torch.nan))
    return torch.stack(least)


def test_the_swarm_comes_near_the_smallest_change_that_is_enough(images):
    model, radius = linear(), 0.3
    targets = model(images).argmin(-1)
    least = smallest_change(model, images, targets, radius)
    assert (least > 0.01).all()
    swarm = ParticleSwarm(radius=radius, particles=200, iterations=150, max_speed=0.5)
    found = swarm(model, images, targets, generator=seeded())
    assert (model(found).argmax(-1) == targets).all()
    size = (found - images).abs().flatten(1).sum(1)
    assert (size >= least - 1e-9).all()
    assert (size <= 1.15 * least + 0.01).all()


def test_a_wanted_probability_is_reached(images):
    swarm = ParticleSwarm(radius=0.3, wanted=0.6, particles=50, iterations=60, max_speed=0.5)
    found = linear()(swarm(linear(), images, TARGETS, generator=seeded())).softmax(-1)
    reached = found[torch.arange(3), TARGETS]
    torch.testing.assert_close(reached, torch.full((3,), 0.6), atol=1e-3, rtol=0)


def test_only_pixels_of_the_largest_influence_change(images):
    model = linear(classes=3)
    found = ParticleSwarm(radius=0.1, num_pixels=2)(model, images, TARGETS, generator=seeded())
    changed = (found != images).flatten(1)
    best = class_gradients(model, images).pixel_influence(TARGETS).flatten(1).topk(2).indices
    expected = torch.zeros_like(changed).scatter(1, best, True)
    assert torch.equal(changed, expected)


def test_pixels_may_be_chosen_by_another_measure(images):
    scores = torch.arange(18.0).reshape(images.shape)
    swarm = ParticleSwarm(radius=0.1, num_pixels=1)
    found = swarm(linear(), images, TARGETS, scores=scores, generator=seeded())
    assert (found != images).flatten(1).nonzero()[:, 1].tolist() == [5, 5, 5]


def test_nothing_leaves_the_ball_or_the_bounds(generator):
    images = torch.rand(3, 1, 2, 3, generator=generator).round() * 0.98
    swarm = ParticleSwarm(radius=0.3, max_speed=1.0, iterations=30, particles=20)
    found = swarm(linear(), images, TARGETS, generator=seeded())
    assert (found - images).abs().max() <= 0.3 + 1e-12
    assert found.min() >= 0.0
    assert found.max() <= 1.0


def test_an_image_has_a_swarm_of_its_own(images):
    """The same draws lead to the same place whatever the other images of the batch are."""
    swarm = ParticleSwarm(radius=0.2, particles=9, iterations=4, num_pixels=3)
    others = torch.cat([images[:1], 1 - images[1:]])
    found, again = (swarm(linear(), x, TARGETS, generator=seeded())[0] for x in (images, others))
    torch.testing.assert_close(found, again)


def test_the_network_is_asked_as_often_as_stated(images):
    rows = []

    def counted(x):
        rows.append(len(x))
        return linear()(x)

    swarm = ParticleSwarm(radius=0.1, particles=7, iterations=4)
    swarm(counted, images, TARGETS, scores=torch.rand_like(images), generator=seeded())
    assert sum(rows) == 3 * swarm.evaluations == 3 * 35


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "particles must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"radius": 0.0}, "radius must be above 0, got 0.0"),
        ({"num_pixels": 0}, "num_pixels must be at least 1 or None, got 0"),
        ({"wanted": 1.5}, "wanted must be a probability or None, got 1.5"),
        ({"max_speed": 0.0}, r"max_speed must be in \(0, 1\], got 0.0"),
        ({"inertia": -1.0}, "inertia must be at least 0, got -1.0"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ParticleSwarm(**{"radius": 0.1, **settings})


def test_images_scores_and_targets_are_checked(images):
    swarm = ParticleSwarm(radius=0.1)
    with pytest.raises(ValueError, match="images must be within bounds"):
        swarm(linear(), images * 255, TARGETS)
    with pytest.raises(ValueError, match=r"scores must be of shape \[3, 1, 2, 3\], got \[3\]"):
        swarm(linear(), images, TARGETS, scores=torch.ones(3))
    with pytest.raises(ValueError, match="num_pixels must be at most 6, got 7"):
        ParticleSwarm(radius=0.1, num_pixels=7)(linear(), images, TARGETS)
    with pytest.raises(ValueError, match="targets must lie in 0 to 1"):
        swarm(linear(), images, TARGETS + 1)
    with pytest.raises(ValueError, match="model must be a classifier"):
        swarm(lambda x: x, images, TARGETS)
