"""How linear a teacher is over moves between states, and what is advised."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import AnalyticTeacher
from lightning_sobolev.doctor.moves import Explained, NothingToExplain
from lightning_sobolev.doctor.teacher import Move, TeacherReport, teacher_report

VECTORS = ["elements of another state", "a tenth of the way to another"]
PICTURES = ["boxes of another state", "12 x 12 cells of another", "shifted by one place"]
NOISE = ["noise of 0.01 std", "noise of 0.03 std", "noise of 0.1 std"]


def cloud(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def of(report, name):
    return next(move.found for move in report.moves if move.name == name)


@pytest.mark.parametrize(("shape", "names"), [((4,), VECTORS), ((2, 14, 14), PICTURES)])
def test_a_linear_teacher_is_explained_by_its_derivatives(shape, names):
    x = cloud(12, *shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).double()
    report = teacher_report(net, x, next_x=x + 1)
    assert [move.name for move in report.moves] == ["the next state", *names, *NOISE]
    scores = [(move.found.first_order, move.found.both_ends) for move in report.moves]
    assert_close(torch.tensor(scores).double(), torch.ones(len(scores), 2).double())
    assert [round(stable.nmse, 12) for stable in report.gradient.stability] == [0.0] * 3
    assert report.advice == "stored"
    assert report.text.startswith("derivatives at stored states (F at recombined states 1.00")
    assert (report.states, report.gradient.spectrum is None) == (12, len(shape) == 1)


def test_both_ends_explain_a_quadratic_teacher():
    report = teacher_report(AnalyticTeacher(lambda x: x.square().sum(1)), cloud(20, 5))
    both = [move.found.both_ends for move in report.moves]
    assert_close(both, [1.0] * len(both))
    assert of(report, "elements of another state").first_order < 0.9


def test_noise_has_the_spread_of_each_input_of_a_vector():
    # f = a x^2 / 2: the derivative moves by a n, so its NMSE is that of the noise to the states.
    x = cloud(4000, 2) * torch.tensor([1000.0, 0.01], dtype=torch.float64)
    scale = torch.tensor([1e-6, 1e4], dtype=torch.float64)
    report = teacher_report(AnalyticTeacher(lambda x: (x.square() * scale).sum(1)), x)
    expected = [level**2 for level in (0.01, 0.03, 0.1)]
    found = [stable.nmse for stable in report.gradient.stability]
    assert_close(found, expected, rtol=0.1, atol=0)


def test_noise_has_the_spread_of_a_picture_as_a_whole():
    columns = torch.arange(6, dtype=torch.float64)
    x = 2 * columns[:, None] + cloud(50, 1, 6, 6) * columns / 5  # a picture that hardly changes
    report = teacher_report(AnalyticTeacher(lambda x: x.square().sum((1, 2, 3)) / 2), x)
    expected = [level**2 * float(x.var() / x.square().mean()) for level in (0.01, 0.03, 0.1)]
    assert_close([each.nmse for each in report.gradient.stability], expected, rtol=0.1, atol=0)
    for each in report.gradient.varying:
        assert each.inputs == float((x.std(0) > each.above * x.std()).double().mean()) < 5 / 6


def test_units_of_a_vector_do_not_matter():
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    units = torch.tensor([1000.0, 1.0, 0.001], dtype=torch.float64)
    x = cloud(40, 3)
    plain = teacher_report(net, x)
    scaled = teacher_report(AnalyticTeacher(lambda x: net(x / units)), x * units)
    for one, other in zip(plain.moves, scaled.moves, strict=True):
        assert_close(other.found.first_order, one.found.first_order)
        assert_close(other.found.both_ends, one.found.both_ends)


def test_ripples_are_to_be_asked_for_values():
    x = cloud(100, 3)
    teacher = AnalyticTeacher(lambda x: torch.sin(20 * x).sum(1))
    report = teacher_report(teacher, x, next_x=x + 0.02 * cloud(100, 3, seed=1))
    assert of(report, "the next state").both_ends > 0.9
    assert of(report, "elements of another state").first_order < -10
    assert report.advice == "queries"
    assert report.text.startswith("ask it for values at recombined states (queries), with cheap")


def test_steps_are_open_and_have_no_derivative():
    x = cloud(30, 2).round() + 0.5  # noise does not leave a step
    report = teacher_report(AnalyticTeacher(torch.floor), x)
    assert of(report, NOISE[0]) is None
    assert of(report, "elements of another state") == Explained(0.0, 0.0, 0.0)
    assert report.gradient is None
    assert report.advice == "open"
    assert ("noise of 0.01 std", "first_order", None) in list(report.numbers())


@pytest.mark.parametrize(
    ("far", "short", "advice"),
    [(0.31, -1.0, "stored"), (0.3, 0.9, "open"), (-0.1, 0.1, "queries"), (-0.1, -0.1, "open"),
     (0.0, 0.5, "open"), (None, 0.9, "open"), (-1.0, None, "open"), (0.5, None, "stored")],
)  # fmt: skip
def test_the_rule(far, short, advice):
    found = [None if far is None else Explained(far, -9.0, 0.0)]
    found.append(None if short is None else Explained(-9.0, short, 0.0))
    moves = tuple(map(Move, VECTORS, found))
    assert TeacherReport(5, moves, None).advice == advice


def test_the_rule_takes_the_mean_of_recombinations_and_the_first_short_move():
    names = ["the next state", *PICTURES]
    numbers = [(0.0, 0.5), (0.5, -9.0), (-1.5, 9.0), (9.0, -0.5)]
    moves = tuple(
        Move(name, Explained(*pair, 0.0)) for name, pair in zip(names, numbers, strict=True)
    )
    report = TeacherReport(5, moves, None)
    assert (report.recombined, report.short, report.advice) == (-0.5, 0.5, "queries")
    assert report.text.endswith("(F at recombined states -0.50, T at a short move 0.50)")


def test_draws_come_from_the_seed_alone():
    net, x, state = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(),
        cloud(20, 3),
        torch.get_rng_state(),
    )
    first = teacher_report(net, x, seed=1)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert list(teacher_report(net, x, seed=1).numbers()) == list(first.numbers())
    assert list(teacher_report(net, x, seed=2).numbers()) != list(first.numbers())


def test_a_constant_teacher_is_named():
    net = nn.Linear(3, 2).double()
    nn.init.zeros_(net.weight)
    with pytest.raises(NothingToExplain, match="teacher must answer differently somewhere"):
        teacher_report(net, cloud(5, 3))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"x": cloud(1, 3)}, r"x must be two states at least, got \[1, 3\]"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, "x must be floating-point numbers"),
        ({"next_x": cloud(4, 3)}, r"next_x must be torch.float64 \[5, 3\] as x is"),
        ({"next_x": cloud(5, 3) * math.nan}, "next_x must be finite"),
        ({"teacher": nn.Linear(3, 1)}, "teacher must be finite in value and derivative"),
    ],
)
def test_bad_input_is_named(given, text):
    whole = {"teacher": nn.Linear(3, 1).double(), "x": cloud(5, 3)} | given
    if "teacher" in given:
        nn.init.constant_(given["teacher"].weight, math.nan)
    with pytest.raises(ValueError, match=text):
        teacher_report(**whole)
