import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import take_step
from lightning_sobolev.objective import RunningScales
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
EXACT = {"rtol": 1e-10, "atol": 1e-12}
RAW = Matching(normalize="none")


def cut(network, cuts, kind, **changes):
    net = network(**changes)
    sections = split(net, cuts)
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    return sections, learned(build_models(KINDS[kind], shapes, CLASSES))


def step(sections, models, x, y, kind, matching=RAW):
    for part in (*sections, *models):
        part.zero_grad()
    scales = [RunningScales() for _ in models]
    return take_step(sections, models, x, y, kind=KINDS[kind], matching=matching, scales=scales)


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("cuts", [[2], [1, 2, 3]])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_with_an_oracle_for_a_model_the_update_is_back_propagation(network, cuts, kind, generator):
    x, y = batch(network, generator)
    net = network()
    sections = split(net, cuts)
    oracle = GradientOracle if KINDS[kind].model == "gradient" else Oracle
    oracles = [oracle(net[at:]) for at in cuts]
    done = step(sections, oracles, x, y, kind)
    decoupled = gradients(net)
    whole = network()
    loss = cross_entropy(whole(x), y)
    loss.backward()
    assert_close(done.loss, loss.detach(), **EXACT)
    for ours, true in zip(decoupled, gradients(whole), strict=True):
        assert_close(ours, true, **EXACT)
    # and it finds nothing to correct in what it said
    for terms in done.terms.values():
        for term in terms.values():
            assert float(term) < 1e-20


@pytest.mark.parametrize("network", [vectors, maps])
def test_back_propagation_is_passed_on_from_cut_to_cut(network, generator):
    x, y = batch(network, generator)
    net, whole = network(), network()
    step(split(net, [1, 3]), [], x, y, "backprop")
    cross_entropy(whole(x), y).backward()
    for ours, true in zip(gradients(net), gradients(whole), strict=True):
        assert_close(ours, true, **EXACT)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("cuts", [[2], [1, 2, 3]])
@pytest.mark.parametrize("kind", KINDS)
def test_no_true_gradient_crosses_a_cut(network, cuts, kind, generator):
    """What is above a cut may be another network: nothing below it moves differently."""
    x, y = batch(network, generator)
    sections, models = cut(network, cuts, kind)
    step(sections, models, x, y, kind)
    before = [gradients(section) for section in sections]
    others, _ = cut(network, cuts, kind, seed=9)
    for at in range(1, len(sections)):
        replaced = [*sections[:at], *others[at:]]
        step(replaced, models, x, y, kind)
        for section, old in zip(sections[:at], before, strict=False):
            for ours, then in zip(gradients(section), old, strict=True):
                if kind == "backprop":
                    assert not torch.equal(ours, then)
                elif then is None:
                    assert ours is None
                else:
                    assert_close(ours, then, rtol=0, atol=0)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_a_section_moves_along_what_the_model_above_it_says(network, kind, generator):
    x, y = batch(network, generator)
    sections, models = cut(network, [1, 3], kind)
    step(sections, models, x, y, kind)
    h = x
    for section, model in zip(copy.deepcopy(sections), models, strict=False):
        output = section(h)
        h = output.detach().requires_grad_()
        if KINDS[kind].model == "gradient":
            said = model(h, y)
        else:
            (said,) = torch.autograd.grad(model(h, y).sum(), h)
        (output * said.detach()).sum().div(len(x)).backward()
        expected = gradients(section)
        for ours, alone in zip(gradients(sections.pop(0)), expected, strict=True):
            assert_close(ours, alone, **EXACT)


def taught(model, kind, h, y, value, gradient, weights):
    """Return the gradient in the model's parameters of the paper's sum, written out."""
    model = copy.deepcopy(model)
    leaf = h.detach().requires_grad_()
    answer = model(leaf, y)
    loss = torch.zeros(())
    if KINDS[kind].model == "gradient":
        loss = weights[1] * (answer - gradient).square().flatten(1).sum(1).mean()
    else:
        (slope,) = torch.autograd.grad(answer.sum(), leaf, create_graph=True)
        if KINDS[kind].matches_value:
            loss = loss + weights[0] * (answer - value).square().mean()
        if KINDS[kind].matches_derivative:
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
    done = step(
        sections,
        models,
        x,
        y,
        kind,
        Matching(value_weight=2, derivative_weight=3, normalize="none"),
    )
    activations, h = [], x
    for section in copy.deepcopy(sections)[:-1]:
        h = section(h).detach()
        activations.append(h)
    for at in (2, 1, 0):
        leaf = activations[at].clone().requires_grad_()
        section = copy.deepcopy(sections[at + 1])
        upper = section(leaf)
        if at == 2:
            value = cross_entropy(upper, y, reduction="none")
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        elif KINDS[kind].model == "gradient":
            value = None
            (gradient,) = torch.autograd.grad(upper, leaf, models[at + 1](upper, y).detach())
        else:
            value = models[at + 1](upper, y)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        value = None if value is None else value.detach()
        expected = taught(models[at], kind, activations[at], y, value, gradient, (2, 3))
        for ours, alone in zip(gradients(models[at]), expected, strict=True):
            assert_close(ours, alone, rtol=1e-9, atol=1e-11)
    names = {"direct": {"gradient"}, "vfbn": {"derivative"}, "critic": {"value"}}
    for terms in done.terms.values():
        assert set(terms) == names.get(kind, {"value", "derivative"})


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_the_first_messages_are_zero(network, kind, generator):
    x, y = batch(network, generator)
    sections = split(network(), [1, 2])
    shapes = activation_shapes(sections, SHAPES[network], CLASSES)
    models = build_models(KINDS[kind], shapes, CLASSES)
    done = step(sections, models, x, y, kind, Matching())
    for said in done.said.values():
        assert not said.gradient.any()
        assert said.value is None or bool((said.value == torch.tensor(CLASSES).log()).all())
    for section in sections[:-1]:
        assert not any(grad.any() for grad in gradients(section))
    # a lower model is not taught a gradient that nobody above it has learned
    assert set(done.terms[1]) == ({"value"} if KINDS[kind].matches_value else set())


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


def test_statistics_of_batch_norm_take_in_a_batch_once(generator):
    x, y = batch(maps, generator)
    net, whole = maps(), maps()
    step(split(net, [1, 3]), learned([]), x, y, "backprop")
    whole(x)
    for ours, true in zip(net.buffers(), whole.buffers(), strict=True):
        assert_close(ours, true, rtol=0, atol=0)


def test_models_of_vectors_and_of_maps_have_convolutions_where_they_fit():
    kinds = {"critic": 1, "direct": 2}
    for kind, convolutions in kinds.items():
        models = build_models(KINDS[kind], [(4, 5, 5), (7,)], CLASSES)
        found = [sum(isinstance(m, nn.Conv2d) for m in model.modules()) for model in models]
        assert found == [convolutions, 0]
