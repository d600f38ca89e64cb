"""Terms on the low frequencies of the input: against dense derivatives of the filtered function."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import (
    BatchTeacher,
    CompileSettings,
    DirectionalTeacher,
    Directions,
    SobolevLoss,
    SobolevTerm,
)
from lightning_sobolev._types import Query
from lightning_sobolev.functional import FuncJet, tape_jet
from lightning_sobolev.functional.band_limits import kept
from lightning_sobolev.loss.compare import Gaps, evaluate
from lightning_sobolev.loss.draws import Draws
from lightning_sobolev.loss.reduce import RunningScales, reduce
from tests._reference import dense_hessian, dense_jacobian, masked_by_numpy
from tests.plugin._loops import taught
from tests.plugin._students import Regressor
from tests.plugin._trainers import as_loader

SHAPE, RATE = (2, 4, 5), 60.0


def net(seed, conv=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Conv2d(2, 3, 3, padding=1) if conv else nn.Identity()
        size = 60 if conv else 40
        return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(size, 3)).double()


@pytest.fixture
def x(generator):
    return torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)


def jets(engine, x):
    student, teacher = net(1), net(2)
    if engine == "func":
        return FuncJet(student, x), FuncJet(teacher, x)
    return tape_jet(student, x, create_graph=True), tape_jet(teacher, x)


def evaluated(term, ours, theirs, x, gaps=None):
    draws = Draws(seed=0, rank=0, counter=0)
    u = draws.cotangents(0, term, ours.value) if term.needs_cotangents else None
    v = draws.tangents(0, term, x) if term.needs_tangents else None
    compared = evaluate(term, ours, theirs, Directions(u, v), gaps)
    return reduce(term, compared, RunningScales())[0]


def exact(**options):
    return SobolevTerm(
        projection="basis", num_projections=None, normalize="none", band=RATE, **options
    )


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_both_sides_match_the_jacobian_on_low_frequencies(side, engine, x):
    found = evaluated(exact(side=side), *jets(engine, x), x)
    error = dense_jacobian(net(1), x) - dense_jacobian(net(2), x)
    low = masked_by_numpy(error, kept(SHAPE[1:], RATE))
    assert_close(found, low.square().sum() / len(x))


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_the_second_order_is_filtered_on_both_sides(engine, x):
    found = evaluated(exact(order=2), *jets(engine, x), x)
    error = dense_hessian(net(1), x) - dense_hessian(net(2), x)
    counts = kept(SHAPE[1:], RATE)
    columns = masked_by_numpy(error, counts).movedim((-3, -2, -1), (-6, -5, -4))
    assert_close(found, masked_by_numpy(columns, counts).square().sum() / len(x))


def test_a_row_of_which_an_entry_is_unknown_is_left_out(x):
    ours = tape_jet(net(1), x, create_graph=True)
    jacobian = dense_jacobian(net(2), x)
    broken = jacobian.clone()
    broken[1, :, 0, 2, 3] = torch.nan
    low = masked_by_numpy(dense_jacobian(net(1), x) - jacobian, kept(SHAPE[1:], RATE))
    known = [0, 2]
    teacher = BatchTeacher(jacobian="j", value="y")
    batch = {"x": x, "j": broken, "y": net(2)(x).detach()}
    theirs = teacher.at(Query(x, batch=batch))
    found = evaluated(exact(), ours, theirs, x, Gaps(allows_unknown=True))
    assert_close(found, low[known].square().sum() / 2)


def trained(**options):
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)]
    loader = as_loader([(x, net(2)(x).detach()) for x in batch])
    term = SobolevTerm(band=RATE, weight=3.0)
    return taught(Regressor(net(3)), term, loader, teacher=net(2), **options)


def test_the_compiler_trains_as_both_engines_do():
    expected = trained()
    assert_close(trained(engine="func"), expected)
    assert_close(trained(compile=CompileSettings(backend="aot_eager")), expected)


@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_inputs_without_axes_of_space_are_refused(side):
    x = torch.ones(2, 5, dtype=torch.float64)
    flat = nn.Linear(5, 2).double()
    jet = tape_jet(flat, x, create_graph=True)
    with pytest.raises(ValueError, match=r"band of term 'order_1' must be None .* \[batch, 5\]"):
        evaluated(SobolevTerm(band=50.0, side=side), jet, tape_jet(flat, x), x)


def test_tangents_that_a_teacher_brings_are_not_filtered(x):
    loss = SobolevLoss(DirectionalTeacher("v", "pushed"), SobolevTerm(band=50.0, side="tangent"))
    student, batch = net(1), {"x": x, "v": torch.ones_like(x), "pushed": torch.ones(3, 3)}
    with loss.observe(student):
        student(x)
    with pytest.raises(ValueError, match="band of term 'order_1' must be None where the teacher"):
        loss(batch=batch)
