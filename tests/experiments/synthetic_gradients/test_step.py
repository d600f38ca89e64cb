import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.sections import split
from lightning_sobolev.experiments.synthetic_gradients.step import build_stages, take_step
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    WITH_MODELS,
    GradientOracle,
    Oracle,
    batch,
    gradients,
    maps,
    moved_along,
    predicted,
    stages,
    taught,
    vectors,
)

pytestmark = pytest.mark.usefixtures("float64")
MATCHED = {"direct": {"gradient"}, "vfbn": {"derivative"}, "critic": {"value"}}
MATCHED |= {"sobolev": {"value", "derivative"}}
exactly_equal = partial(assert_close, rtol=0, atol=0)
equal = partial(assert_close, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("cuts", [[2], [1, 2, 3]])
@pytest.mark.parametrize("kind", [*WITH_MODELS, "backprop"])
def test_with_exact_models_or_the_true_gradient_it_is_back_propagation(
    network, cuts, kind, generator
):
    x, y = batch(network, generator)
    net, whole = network(), network()
    oracle = GradientOracle if kind == "direct" else Oracle
    oracles = [oracle(net[at:]) for at in cuts] if kind != "backprop" else []
    cut = build_stages(split(net, cuts), oracles, KINDS[kind], Matching(normalize="none"))
    done = take_step(cut, x, y)
    loss = cross_entropy(whole(x), y)
    loss.backward()
    equal(done.loss, loss.detach())
    equal(gradients(net), gradients(whole))
    equal(list(net.buffers()), list(whole.buffers()))  # batch norm takes a batch in once
    # and an exact model finds nothing to correct
    assert all(float(term) < 1e-20 for terms in done.terms.values() for term in terms.values())


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", KINDS)
def test_no_true_gradient_crosses_a_cut(network, kind, generator):
    """What is above a cut may be another network: nothing below it moves differently."""
    x, y = batch(network, generator)
    cut, others = stages(network, [1, 2, 3], kind), stages(network, [1, 2, 3], kind, seed=9)
    take_step(cut, x, y)
    before = [gradients(stage.section) for stage in cut]
    for at in (1, 2, 3):
        for stage in cut:
            stage.section.zero_grad()
        take_step([*cut[:at], *others[at:]], x, y)
        for stage, old in zip(cut[:at], before, strict=False):
            if kind == "backprop":
                assert not torch.equal(gradients(stage.section)[0], old[0])
            else:
                exactly_equal(gradients(stage.section), old)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
def test_sections_move_along_predictions_and_models_learn_the_loss_above_or_the_next_model(
    network, kind, generator
):
    x, y = batch(network, generator)
    weighted = Matching(value_weight=2, derivative_weight=3, normalize="none")
    cut = stages(network, [1, 2, 3], kind, weighted)
    sections = [copy.deepcopy(stage.section) for stage in cut]
    done = take_step(cut, x, y)
    activations = [x]
    for section in copy.deepcopy(sections):
        activations.append(section(activations[-1]).detach())
    for at, (stage, above) in enumerate(pairwise(cut)):
        h = activations[at + 1]
        slope = predicted(stage.model, kind, h, y)
        equal(gradients(stage.section), moved_along(sections[at], activations[at], slope))
        leaf, value = h.clone().requires_grad_(), None
        upper = copy.deepcopy(sections[at + 1])(leaf)
        if kind != "direct" or above.model is None:
            is_true = above.model is None
            value = cross_entropy(upper, y, reduction="none") if is_true else above.model(upper, y)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            value = value.detach()
        else:
            (gradient,) = torch.autograd.grad(upper, leaf, above.model(upper, y).detach())
        equal(gradients(stage.model), taught(stage.model, kind, h, y, value, gradient, (2, 3)))
    assert all(set(terms) == MATCHED[kind] for terms in done.terms.values())


@pytest.mark.parametrize("kind", WITH_MODELS)
def test_nothing_below_moves_before_a_model_has_learned(kind, generator):
    x, y = batch(vectors, generator)
    models = build_models(KINDS[kind], [(7,), (6,)], CLASSES)
    cut = build_stages(split(vectors(), [1, 2]), models, KINDS[kind], Matching())
    done = take_step(cut, x, y)
    assert not any(grad.any() for stage in cut[:-1] for grad in gradients(stage.section))
    if kind != "direct":
        exactly_equal(models[0](cut[0].section(x), y), torch.full((len(x),), CLASSES).log())
    # a lower model is not taught a gradient that nobody above it has learned
    assert set(done.terms[1]) == MATCHED[kind] & {"value"}


def test_terms_are_divided_by_their_targets_mean_square(generator):
    x, y = batch(vectors, generator)
    cut = stages(vectors, [2], "sobolev")
    raw = take_step(cut, x, y).terms[1]
    scaled = take_step(stages(vectors, [2], "sobolev", Matching()), x, y).terms[1]
    above = cut[0].section(x).detach().requires_grad_()
    losses = cross_entropy(cut[1].section(above), y, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), above)
    assert_close(scaled["value"], raw["value"] / losses.detach().square().mean())
    assert_close(scaled["derivative"], raw["derivative"] / slope.square().sum(1).mean())
