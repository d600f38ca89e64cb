import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import build_stages, take_step
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    SHAPES,
    GradientOracle,
    Oracle,
    batch,
    learned,
    maps,
    vectors,
)

pytestmark = pytest.mark.usefixtures("float64")
WITH_MODELS = [name for name, kind in KINDS.items() if kind.model is not None]
MATCHED = {"direct": {"gradient"}, "vfbn": {"derivative"}, "critic": {"value"}}
MATCHED |= {"sobolev": {"value", "derivative"}}
RAW = Matching(normalize="none")
exactly_equal = partial(assert_close, rtol=0, atol=0)
equal = partial(assert_close, rtol=1e-10, atol=1e-12)


def cut(network, cuts, kind, **changes):
    sections = split(network(**changes), cuts)
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    return sections, learned(build_models(KINDS[kind], shapes, CLASSES))


def step(sections, models, x, y, kind, matching=RAW):
    for part in (*sections, *models):
        part.zero_grad()
    return take_step(build_stages(sections, models, KINDS[kind], matching), x, y)


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def back_propagated(network, x, y):
    """Return loss and gradients of the whole network, as everybody has them."""
    net = network()
    loss = cross_entropy(net(x), y)
    loss.backward()
    return loss.detach(), gradients(net), list(net.buffers())


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("cuts", [[2], [1, 2, 3]])
@pytest.mark.parametrize("kind", [*WITH_MODELS, "backprop"])
def test_with_exact_models_or_the_true_gradient_it_is_back_propagation(
    network, cuts, kind, generator
):
    x, y = batch(network, generator)
    net = network()
    oracle = GradientOracle if KINDS[kind].model == "gradient" else Oracle
    oracles = [oracle(net[at:]) for at in cuts] if kind != "backprop" else []
    done = step(split(net, cuts), oracles, x, y, kind)
    loss, expected, statistics = back_propagated(network, x, y)
    equal(done.loss, loss)
    equal(gradients(net), expected)
    equal(list(net.buffers()), statistics)  # of batch norm: a batch is taken in once
    # and an exact model finds nothing to correct
    assert all(float(term) < 1e-20 for terms in done.terms.values() for term in terms.values())


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", KINDS)
def test_no_true_gradient_crosses_a_cut(network, kind, generator):
    """What is above a cut may be another network: nothing below it moves differently."""
    x, y = batch(network, generator)
    sections, models = cut(network, [1, 2, 3], kind)
    step(sections, models, x, y, kind)
    before = [gradients(section) for section in sections]
    others, _ = cut(network, [1, 2, 3], kind, seed=9)
    for at in (1, 2, 3):
        step([*sections[:at], *others[at:]], models, x, y, kind)
        for section, old in zip(sections[:at], before, strict=False):
            if kind == "backprop":
                assert not torch.equal(gradients(section)[0], old[0])
            else:
                exactly_equal(gradients(section), old)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_a_section_moves_along_what_the_model_above_it_predicts(network, kind, generator):
    x, y = batch(network, generator)
    sections, models = cut(network, [1, 3], kind)
    step(sections, models, x, y, kind)
    h = x
    for section, model, moved in zip(copy.deepcopy(sections), models, sections, strict=False):
        output = section(h)
        h = output.detach().requires_grad_()
        if KINDS[kind].model == "gradient":
            predicted = model(h, y)
        else:
            (predicted,) = torch.autograd.grad(model(h, y).sum(), h)
        section.zero_grad()
        (output * predicted.detach()).sum().div(len(x)).backward()
        equal(gradients(moved), gradients(section))


def taught(model, kind, h, y, value, gradient, weights):
    """Return the gradient in the model's parameters of the paper's sum, written out."""
    model = copy.deepcopy(model)
    leaf = h.detach().requires_grad_()
    answer = model(leaf, y)
    loss = torch.zeros(())
    if kind == "direct":
        loss = weights[1] * (answer - gradient).square().flatten(1).sum(1).mean()
    if kind in ("critic", "sobolev"):
        loss = loss + weights[0] * (answer - value).square().mean()
    if kind in ("vfbn", "sobolev"):
        (slope,) = torch.autograd.grad(answer.sum(), leaf, create_graph=True)
        loss = loss + weights[1] * (slope - gradient).square().flatten(1).sum(1).mean()
    model.zero_grad()
    loss.backward()
    return gradients(model)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_models_learn_the_loss_above_them_and_the_lower_ones_from_the_next(
    network, kind, generator
):
    x, y = batch(network, generator)
    sections, models = cut(network, [1, 2, 3], kind)
    above, h, activations = copy.deepcopy(sections), x, []
    for section in copy.deepcopy(sections)[:-1]:
        h = section(h).detach()
        activations.append(h)
    weighted = Matching(value_weight=2, derivative_weight=3, normalize="none")
    done = step(sections, models, x, y, kind, weighted)
    for at in (2, 1, 0):
        leaf, value = activations[at].clone().requires_grad_(), None
        upper = above[at + 1](leaf)
        if at == 2:
            value = cross_entropy(upper, y, reduction="none")
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        elif kind == "direct":
            (gradient,) = torch.autograd.grad(upper, leaf, models[at + 1](upper, y).detach())
        else:
            value = models[at + 1](upper, y)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        value = None if value is None else value.detach()
        expected = taught(models[at], kind, activations[at], y, value, gradient, (2, 3))
        assert_close(gradients(models[at]), expected, rtol=1e-9, atol=1e-11)
    assert all(set(terms) == MATCHED[kind] for terms in done.terms.values())


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_nothing_below_moves_before_a_model_has_learned(network, kind, generator):
    x, y = batch(network, generator)
    sections = split(network(), [1, 2])
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    models = build_models(KINDS[kind], shapes, CLASSES)
    done = step(sections, models, x, y, kind, Matching())
    for section in sections[:-1]:
        assert not any(grad.any() for grad in gradients(section))
    if kind != "direct":
        exactly_equal(models[0](sections[0](x), y), torch.full((len(x),), CLASSES).log())
    # a lower model is not taught a gradient that nobody above it has learned
    assert set(done.terms[1]) == MATCHED[kind] & {"value"}


def test_terms_are_divided_by_their_targets_mean_square(generator):
    x, y = batch(vectors, generator)
    sections, models = cut(vectors, [2], "sobolev")
    raw = step(sections, models, x, y, "sobolev").terms[1]
    scaled = step(sections, models, x, y, "sobolev", Matching()).terms[1]
    above = sections[0](x).detach().requires_grad_()
    losses = cross_entropy(sections[1](above), y, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), above)
    assert_close(scaled["value"], raw["value"] / losses.detach().square().mean())
    assert_close(scaled["derivative"], raw["derivative"] / slope.square().sum(1).mean())
