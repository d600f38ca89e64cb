"""Every element of a projected row by its own scale."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import Directions, SobolevTerm
from lightning_sobolev.loss.compare import Gaps, evaluate
from lightning_sobolev.loss.reduce import RunningScales, reduce
from lightning_sobolev.teachers import TabulatedJet

TERM = SobolevTerm(normalize="elements")


@pytest.fixture
def randn(generator, float64):
    assert float64 is None
    return lambda *shape: torch.randn(shape, generator=generator)


def term_of(student, target, scales=None, term=TERM):
    value = torch.zeros(len(target), 1)
    jets = [TabulatedJet((3,), value=value, jacobian=rows[:, None]) for rows in (student, target)]
    along = Directions(torch.ones(1, len(target), 1))
    compared = evaluate(term, *jets, along, Gaps(allows_unknown=True))
    return reduce(term, compared, RunningScales() if scales is None else scales)[0]


def test_it_is_the_mean_over_inputs_of_relative_errors(randn):
    student, target = randn(7, 3), randn(7, 3)
    relative = (student - target).square().mean(0) / target.square().mean(0)
    assert_close(term_of(student, target), relative.mean())


def test_an_input_that_changes_nothing_is_held_to_zero_with_a_bounded_weight(randn):
    target = torch.tensor([1.0, 1.0, 0.0]) * randn(7, 3)
    student = target + torch.tensor([0.0, 0.0, 1e-3])
    ordinary = target.square().mean(0).mean()
    assert_close(term_of(student, target), 1e-6 / (1e-4 * ordinary) / 3)


def test_unknown_entries_count_neither_in_errors_nor_in_scales(randn):
    student, target = randn(7, 3), randn(7, 3)
    target[:4, 1] = float("nan")
    errors = (student - target).square().nanmean(0) / target.square().nanmean(0)
    assert_close(term_of(student, target), errors.mean())


def test_scales_run_over_batches_and_are_plain_state(randn):
    scales, batches = RunningScales(), [randn(5, 3), 4 * randn(5, 3)]
    for target in batches:
        last = term_of(torch.zeros(5, 3), target, scales)
    squares = torch.stack([target.square().mean(0) for target in batches])
    assert_close(last, (squares[1] / squares.mean(0)).mean())
    assert_close(scales.state["order_1"][0], squares.mean(0))


def test_a_target_that_vanishes_everywhere_is_refused(randn):
    with pytest.raises(ValueError, match="must not vanish when it is normalized"):
        term_of(randn(5, 3), torch.zeros(5, 3))
