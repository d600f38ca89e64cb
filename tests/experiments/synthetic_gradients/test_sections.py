import math
from functools import partial

import pytest
import torch
from torch import nn

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import (
    GradientModel,
    LossModel,
    ModelSettings,
    build_models,
    check_models,
)
from lightning_sobolev.experiments.synthetic_gradients.module import DecoupledModule
from lightning_sobolev.experiments.synthetic_gradients.processes.stage import Pipeline
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from tests.experiments.synthetic_gradients._networks import CLASSES, maps, vectors


def layers(*middle):
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, CLASSES))


@pytest.mark.parametrize(("cuts", "lengths"), [([1, 3], [1, 2, 1]), (2, [2, 1, 1])])
def test_sections_are_the_network(cuts, lengths):
    net = vectors()
    sections = split(net, cuts)
    assert [len(section) for section in sections] == lengths
    assert [layer for section in sections for layer in section] == list(net)


@pytest.mark.parametrize("cuts", [[], [0], [4], [2, 2], [3, 1], [-1], 0, 4, -1])
def test_a_cut_that_splits_nothing_is_refused(cuts):
    with pytest.raises(ValueError, match=r"ascending numbers from 1 to 3.*, got "):
        split(vectors(), cuts)


shared = nn.Linear(6, 6)


@pytest.mark.parametrize(
    ("network", "cuts", "message"),
    [
        (nn.Bilinear(1, 1, 1), [1], r"network must be a torch\.nn\.Sequential .*got 'Bilinear'"),
        (layers(nn.Tanh()), [1, 2], r"got none in section 1 \(layers 1 to 1\)"),
        (layers(nn.Linear(6, 6).requires_grad_(False)), [1, 2], r"got none in section 1 \(layers"),
        (layers(shared, shared), [2, 3], r"must not share parameters, got one of \[6, 6\] in sec"),
    ],
)
def test_sections_that_cannot_be_trained_apart_are_refused(network, cuts, message):
    with pytest.raises(ValueError, match=message):
        split(network, cuts)


class Writer(nn.Linear):
    def forward(self, x):
        return super().forward(x.mul_(2))


@pytest.mark.parametrize(
    ("network", "shape", "classes", "message"),
    [
        (layers(Writer(6, 6)), (4,), CLASSES, "expected inplace=False at its start, got section 1"),
        (layers(nn.Flatten(), nn.ELU(inplace=True)), (4,), CLASSES, "got section 1, which does"),
        (vectors(), (7,), CLASSES, r"section 0 must take activations of \[2, 7\], got: mat1"),
        (vectors(), (5,), 4, r"logits must be \[2, 4\], got \[2, 3\]"),
    ],
)
def test_sections_that_cannot_pass_activations_on_are_refused(network, shape, classes, message):
    with pytest.raises(ValueError, match=message):
        activation_shapes(split(network, [1]), shape, classes)


def test_shapes_are_those_at_the_cuts_and_trying_leaves_no_trace():
    net = maps()
    net[1].append(nn.ReLU(inplace=True))  # which is no harm further up
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert activation_shapes(split(net, [1, 3]), (2, 4, 4), CLASSES) == [(4, 4, 4), (4, 4, 4)]
    assert [block.training for block in net] == [True, False, True, True]
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["direct", "critic"])
@pytest.mark.parametrize("settings", [{}, {"depth": 0}, {"depth": 3, "stride": 3}])
def test_models_fit_their_cut(kind, settings):
    shapes = [(6,), (4, 5, 7)]
    models = build_models(KINDS[kind], shapes, CLASSES, ModelSettings(width=5, **settings))
    check_models(models, KINDS[kind], shapes, torch.zeros(()))
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in model.modules()) for model in models]
    assert convolutions == [0, settings.get("depth", 1) + (kind == "direct")]


def test_a_gradient_model_hears_the_class():
    torch.manual_seed(0)
    model = GradientModel(nn.Conv2d(2 + CLASSES, 2, 1), CLASSES)
    h = torch.randn(1, 2, 3, 3).expand(2, 2, 3, 3)
    first, second = model(h, torch.tensor([0, 2]))
    assert not torch.equal(first, second)


def one(model, kind, **settings):
    options = {"input_shape": (4,), "num_classes": CLASSES, **settings}
    return DecoupledModule(layers(), 1, torch.optim.SGD, models=model, kind=kind, **options)


def pipeline(**settings):
    return Pipeline(**{"steps": 1, "optimizer": torch.optim.SGD, **settings})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(one, [], "magic"), "kind must be one of .*'sobolev'.*, got 'magic'"),
        (partial(one, [], "critic"), "models must be 1 for this kind and cuts, got 0"),
        (partial(one, [nn.Identity()], "noprop"), "models must be 0 for this kind and cuts, got 1"),
        (
            partial(one, [LossModel(nn.Linear(7, 3))], "critic"),
            r"1 must take activations of \[2, 6",
        ),
        (partial(one, [GradientModel(nn.Linear(9, 6), 3)], "critic"), r"be \[2\], got \[2, 6\]"),
        (partial(one, [LossModel(nn.Linear(6, 3))], "direct"), r"be \[2, 6\], got \[2\]"),
        (partial(build_models, KINDS["critic"], [(3, 4)], 3), r"\[3, 4\] at cut 1: pass models of"),
        (partial(ModelSettings, width=0), "width must be at least 1, got 0"),
        (partial(ModelSettings, depth=-1), "depth must be at least 0, got -1"),
        (partial(ModelSettings, stride=0), "stride must be at least 1, got 0"),
        (partial(ModelSettings, activation="step"), "activation must be one of .*, got 'step'"),
        (partial(Matching, value_weight=-1.0), "value_weight must be a finite number >= 0, got -1"),
        (
            partial(Matching, derivative_weight=math.nan),
            "derivative_weight must be a finite number",
        ),
        (partial(Matching, normalize="no"), "normalize must be one of .*, got 'no'"),
        (partial(pipeline, steps=0), "steps must be at least 1, got 0"),
        (partial(pipeline, model_updates=0), "model_updates must be at least 1, got 0"),
        (partial(one, [], "critic", model_updates=0), "model_updates must be at least 1, got 0"),
        (partial(pipeline, buffer=0), "buffer must be at least 1, got 0"),
        (partial(pipeline, delay=-1.0), "delay must be >= 0, got -1.0"),
        (partial(pipeline, timeout=0.0), "timeout must be > 0, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
