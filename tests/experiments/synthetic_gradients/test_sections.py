import pytest
import torch
from torch import nn

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.messages import check_answer
from lightning_sobolev.experiments.synthetic_gradients.models import (
    GradientModel,
    LossModel,
    ModelSettings,
    build_models,
)
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from tests.experiments.synthetic_gradients._networks import CLASSES, maps, vectors


def layers(*middle):
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, CLASSES))


def test_sections_are_the_network():
    net = vectors()
    sections = split(net, [1, 3])
    assert [len(section) for section in sections] == [1, 2, 1]
    x = torch.randn(2, 5)
    h = x
    for section in sections:
        h = section(h)
    assert torch.equal(h, net(x))


def test_a_number_of_cuts_counts_from_above():
    sections = split(vectors(), 2)
    assert [len(section) for section in sections] == [2, 1, 1]


@pytest.mark.parametrize("cuts", [[], [0], [4], [2, 2], [3, 1], [-1], [5], 0, 4, -1])
def test_a_cut_that_splits_nothing_is_refused(cuts):
    with pytest.raises(ValueError, match=r"ascending numbers from 1 to 3.*, got "):
        split(vectors(), cuts)


def test_only_a_sequential_can_be_cut():
    with pytest.raises(ValueError, match=r"network must be a torch\.nn\.Sequential .*got Bilinear"):
        split(nn.Bilinear(1, 1, 1), [1])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_section_without_parameters_is_refused(frozen):
    net = layers(nn.Linear(6, 6).requires_grad_(False) if frozen else nn.Tanh())
    with pytest.raises(ValueError, match=r"got none in section 1 \(layers 1 to 1\)"):
        split(net, [1, 2])


def test_sections_that_share_parameters_are_refused():
    shared = nn.Linear(6, 6)
    with pytest.raises(ValueError, match=r"must not share parameters, got one of \[6, 6\] in se"):
        split(layers(shared, shared), [2, 3])


@pytest.mark.parametrize(
    "leading",
    [
        [nn.ReLU(inplace=True)],
        [nn.Identity(), nn.Flatten(), nn.ELU(inplace=True)],
        [nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(6, 6))],
    ],
)
def test_a_layer_that_writes_across_a_cut_is_refused(leading):
    with pytest.raises(ValueError, match=r"expected inplace=False at the start of section 1.*got"):
        split(layers(*leading), [1])


def test_a_layer_that_writes_further_up_is_fine():
    net = layers(nn.Linear(6, 6), nn.ReLU(inplace=True))
    assert len(split(net, [1])) == 2


class Writer(nn.Linear):
    """Writes into its input without saying so."""

    def forward(self, x):
        return super().forward(x.mul_(2))


def test_hidden_writing_is_found_by_trying():
    sections = split(layers(Writer(6, 6)), [1])
    with pytest.raises(ValueError, match=r"write into its input, got .* section 1"):
        activation_shapes(sections, (4,), CLASSES)


def test_shapes_are_those_at_the_cuts_and_trying_leaves_no_trace():
    net = maps()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net[1].eval()
    assert activation_shapes(split(net, [1, 3]), (2, 4, 4), CLASSES) == [(4, 4, 4), (4, 4, 4)]
    assert [block.training for block in net] == [True, False, True, True]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((7,), CLASSES, r"section 0 must take activations of \[2, 7\], got: mat1 and mat2"),
        ((5,), 4, r"must give \[batch, 4\] logits, got \[2, 3\]"),
    ],
)
def test_a_network_of_another_shape_is_refused(shape, classes, message):
    with pytest.raises(ValueError, match=message):
        activation_shapes(split(vectors(), [1]), shape, classes)


@pytest.mark.parametrize("shape", [(6,), (4, 5, 7)])
@pytest.mark.parametrize("kind", ["direct", "critic"])
@pytest.mark.parametrize("settings", [{}, {"depth": 0}, {"depth": 3, "stride": 3}])
def test_models_fit_their_cut(shape, kind, settings):
    settings = ModelSettings(width=5, **settings)
    (model,) = build_models(KINDS[kind], [shape], CLASSES, settings)
    check_answer(model, KINDS[kind], shape, 1, torch.zeros(()))


def test_a_gradient_model_hears_the_class():
    torch.manual_seed(0)
    model = GradientModel(nn.Conv2d(2 + CLASSES, 2, 1), CLASSES)
    h = torch.randn(1, 2, 3, 3).expand(2, 2, 3, 3)
    first, second = model(h, torch.tensor([0, 2]))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("critic", nn.Bilinear(6, 1, 1), "must take activations"),
        ("critic", GradientModel(nn.Linear(6 + CLASSES, 6), CLASSES), r"with \[2\], got \[2, 6\]"),
        ("direct", LossModel(nn.Linear(6, CLASSES)), r"with \[2, 6\], got \[2\]"),
        ("direct", GradientModel(nn.Linear(6 + CLASSES, 5), CLASSES), r"got \[2, 5\]"),
        ("critic", LossModel(nn.Linear(7, CLASSES)), r"cut 4 must take activations of \[2, 6\]"),
    ],
)
def test_a_model_of_the_wrong_shape_is_refused(kind, model, message):
    with pytest.raises(ValueError, match=message):
        check_answer(model, KINDS[kind], (6,), 4, torch.zeros(()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"activation": "step"}, "activation must be one of .*, got 'step'"),
    ],
)
def test_sizes_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(**settings)


def test_activations_of_other_ranks_need_models_of_their_own():
    with pytest.raises(ValueError, match=r"got \[3, 4\] at cut 1: pass models of your own"):
        build_models(KINDS["critic"], [(3, 4)], CLASSES)
