"""Influences against the dense metric, which is formed here and nowhere in the package."""

import pytest
import torch
from torch import nn

from lightning_sobolev.adversarial.fisher import class_gradients
from tests._reference import dense_jacobian

pytestmark = pytest.mark.usefixtures("float64")


def network(classes=4, pixels=12, rank=None, scale=1.0):
    torch.manual_seed(0)
    width = 16 if rank is None else rank
    layers = (nn.Flatten(), nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, classes))
    model = nn.Sequential(*layers)
    model[3].weight.data *= scale
    return model


@pytest.fixture
def images(generator):
    return torch.rand(5, 1, 3, 4, generator=generator, dtype=torch.float64)


def dense(model, images):
    """Return probabilities, their Jacobians [batch, classes, pixels] and the metrics."""
    probs = model(images).softmax(-1)
    jacobian = dense_jacobian(lambda x: model(x).softmax(-1), images).flatten(2)
    metric = torch.einsum("bkp,bkq,bk->bpq", jacobian, jacobian, 1 / probs)
    return probs.detach(), jacobian.detach(), metric.detach()


def dense_influence(probs, jacobian, metric, targets, **cut):
    rows = torch.arange(len(targets))
    gradient = jacobian[rows, targets] / probs[rows, targets][:, None]
    inverse = torch.linalg.pinv(metric, hermitian=True, **cut)
    return torch.einsum("bp,bpq,bq->b", gradient, inverse, gradient)


TARGETS = torch.tensor([0, 3, 1, 2, 0])


@pytest.mark.parametrize("rank", [None, 2, 1])
def test_the_image_influence_is_that_of_the_dense_metric(images, rank):
    model = network(rank=rank)
    expected = dense_influence(*dense(model, images), TARGETS, rtol=1e-12)
    found = class_gradients(model, images).image_influence(TARGETS)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("rank", "says_more"), [(None, False), (2, True)])
def test_at_full_rank_it_says_what_the_probability_says(images, rank, says_more):
    sensitivity = class_gradients(network(rank=rank), images)
    found = sensitivity.image_influence(TARGETS)
    odds = 1 / sensitivity.log_probs.exp()[torch.arange(5), TARGETS] - 1
    assert torch.linalg.matrix_rank(sensitivity.gram()).tolist() == [2 if says_more else 3] * 5
    assert torch.allclose(found, odds, rtol=1e-8) != says_more
    assert (found <= odds + 1e-9).all()


def test_the_threshold_cuts_singular_values_of_the_dense_pseudo_inverse(images):
    model = network(scale=0.05)
    probs, jacobian, metric = dense(model, images)
    values = torch.linalg.eigvalsh(metric)[0].sqrt()
    threshold = float(values[-2:].mean())  # one of three directions of the first image stays
    expected = dense_influence(probs, jacobian, metric, TARGETS, atol=threshold**2, rtol=0.0)
    sensitivity = class_gradients(model, images)
    found = sensitivity.image_influence(TARGETS, threshold=threshold)
    torch.testing.assert_close(found, expected)
    assert found[0] < 0.9 * sensitivity.image_influence(TARGETS)[0]


def test_the_odds_against_a_class_are_right_where_its_probability_rounds_to_one(images):
    sensitivity = class_gradients(network(scale=200.0), images)
    likeliest = sensitivity.log_probs.argmax(-1)
    others = sensitivity.log_probs.scatter(1, likeliest[:, None], -torch.inf).logsumexp(1)
    odds = (others - sensitivity.log_probs.amax(-1)).exp()
    assert odds.min() < 1e-16
    torch.testing.assert_close(sensitivity.image_influence(likeliest), odds, rtol=1e-6, atol=0.0)


def test_the_pixel_influence_is_that_of_the_metric_of_one_pixel(images):
    model = network()
    probs, jacobian, metric = dense(model, images)
    rows = torch.arange(5)
    gradient = jacobian[rows, TARGETS] / probs[rows, TARGETS][:, None]
    expected = gradient.square() / metric.diagonal(dim1=1, dim2=2)
    sensitivity = class_gradients(model, images)
    found = sensitivity.pixel_influence(TARGETS)
    torch.testing.assert_close(found, expected.reshape(images.shape))
    assert (found.flatten(1).amax(1) <= sensitivity.image_influence(TARGETS)).all()


def test_single_precision_tells_the_null_direction_from_the_others(images):
    sensitivity = class_gradients(network().float(), images.float())
    odds = 1 / sensitivity.log_probs.exp()[torch.arange(5), TARGETS] - 1
    torch.testing.assert_close(sensitivity.image_influence(TARGETS), odds, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [lambda x: x, lambda x: x.flatten(1)[:, :1], lambda x: x.mean((1, 2, 3)), lambda x: (x,)],
    ids=["images", "one class", "numbers", "tuple"],
)
def test_what_is_no_classifier_is_refused(model, images):
    with pytest.raises(ValueError, match=r"model must be a classifier that returns logits \[5, "):
        class_gradients(model, images)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1, 2, 3, 4], "targets must lie in 0 to 3, got 0 to 4"),
        ([0, 1, 2, 3, -1], "targets must lie in 0 to 3, got -1 to 3"),
        ([0, 1], r"targets must be whole numbers of shape \[5\]"),
        ([0.0] * 5, r"targets must be whole numbers of shape \[5\]"),
    ],
)
def test_targets_are_checked(images, targets, message):
    sensitivity = class_gradients(network(), images)
    for measure in (sensitivity.image_influence, sensitivity.pixel_influence):
        with pytest.raises(ValueError, match=message):
            measure(torch.tensor(targets))


def test_a_negative_threshold_is_refused(images):
    with pytest.raises(ValueError, match="threshold must be at least 0 or None, got -1"):
        class_gradients(network(), images).image_influence(TARGETS, threshold=-1.0)
