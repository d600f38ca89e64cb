"""From jets to one scalar: matching, masks, scales, sums."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import Directions, SobolevTerm
from lightning_sobolev.loss.compare import Comparison, Gaps, evaluate
from lightning_sobolev.loss.draws import Draws
from lightning_sobolev.loss.reduce import RunningScales, join, reduce
from lightning_sobolev.teachers import TabulatedJet

NAN, INF = float("nan"), float("inf")
TERM = SobolevTerm(normalize="none")
ALONG = Directions(torch.ones(1, 4, 1, dtype=torch.float64))
UNKNOWN = Gaps(allows_unknown=True)


def scalar_jet(gradient):
    value = gradient.new_zeros(len(gradient), 1)
    return TabulatedJet(gradient.shape[1:], value=value, jacobian=gradient[:, None])


@pytest.fixture
def gradients(generator):
    return torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)


# Draws


def test_draws_are_a_function_of_seed_rank_counter_term_and_side():
    y = torch.zeros(4, 3, dtype=torch.float64)
    first = Draws(1, 0, 5)
    same = Draws(1, 0, 5)
    assert_close(first.cotangents(0, TERM, y), same.cotangents(0, TERM, y), rtol=0, atol=0)
    others = [Draws(2, 0, 5), Draws(1, 1, 5), Draws(1, 0, 6)]
    drawn = [draws.cotangents(0, TERM, y) for draws in (first, *others)]
    drawn += [first.cotangents(1, TERM, y), first.tangents(0, TERM, y)]
    for i, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:i])


@pytest.mark.parametrize(("fraction", "size", "count"), [(0.5, 8, 4), (0.1, 4, 1), (0.34, 9, 3)])
def test_rows_are_distinct_ordered_and_at_least_one(fraction, size, count):
    rows = Draws(0, 0, 0).rows(fraction, size)
    assert len(rows) == count
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert 0 <= rows[0] <= rows[-1] < size


def test_every_row_has_its_turn():
    taken = torch.cat([Draws(0, 0, counter).rows(0.25, 8) for counter in range(200)])
    share = torch.bincount(taken, minlength=8) / 200
    assert (share - 0.25).abs().max() < 0.13  # four standard errors of a share of 0.25


# Matching


def test_the_target_carries_no_graph(gradients):
    ours, theirs = (g.clone().requires_grad_() for g in gradients)
    compared = evaluate(TERM, scalar_jet(ours), scalar_jet(theirs), ALONG)
    compared.distance.sum().backward()
    assert theirs.grad is None
    assert ours.grad is not None


def test_order_0_matches_the_value(gradients):
    jets = [TabulatedJet((3,), value=g) for g in gradients]
    term = SobolevTerm(order=0)
    compared = evaluate(term, *jets, Directions())
    expected = (gradients[0] - gradients[1]).square().sum(-1)[None]
    assert_close(compared.distance, expected)
    assert_close(compared.reference, gradients[1].square().sum(-1)[None])


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 2), (3, 2), (4,), ()])
def test_other_shapes_are_refused_by_name(shape):
    ours = TabulatedJet((3,), value=torch.ones(4, 2))
    theirs = TabulatedJet((3,), value=torch.zeros(shape))
    text = r"must agree in shape for term 'order_0', got \[4, 2\] from the student and \["
    with pytest.raises(ValueError, match=text):
        evaluate(SobolevTerm(order=0), ours, theirs, Directions())


# Unknown entries


def test_unknown_entries_have_no_influence(gradients):
    ours, theirs = gradients
    theirs[0, 1] = theirs[2, 0] = NAN
    theirs[3] = NAN
    student = ours.clone().requires_grad_()
    compared = evaluate(TERM, scalar_jet(student), scalar_jet(theirs), ALONG, UNKNOWN)
    total, _ = reduce(TERM, compared, RunningScales())
    # three rows have a known entry; the mean is over them
    expected = sum((ours[b] - theirs[b]).square().nansum() for b in range(3)) / 3
    assert_close(total, expected)
    assert_close(compared.known, torch.tensor([[True, True, True, False]]))
    (gradient,) = torch.autograd.grad(total, student)
    assert_close(gradient, torch.where(theirs.isnan(), 0.0, 2 / 3 * (ours - theirs)))


@pytest.mark.parametrize("normalize", ["target", "none"])
@pytest.mark.parametrize("discrepancy", ["squared", "l1", "huber", "cosine"])
def test_a_batch_without_any_known_entry_is_worth_nothing(discrepancy, normalize, gradients):
    term = SobolevTerm(discrepancy=discrepancy, normalize=normalize)
    scales = RunningScales()
    student = gradients[0].clone().requires_grad_()
    nothing = scalar_jet(torch.full_like(gradients[1], NAN))
    compared = evaluate(term, scalar_jet(student), nothing, ALONG, UNKNOWN)
    total, _ = reduce(term, compared, scales)
    (gradient,) = torch.autograd.grad(total, student)
    assert_close(total, torch.zeros_like(total), rtol=0, atol=0)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=0)
    assert not scales.state
    assert not compared.known.any()


def test_an_unknown_hessian_is_not_mistaken_for_a_flat_student():
    ours = TabulatedJet((3,), value=torch.zeros(4, 1), hessian=torch.zeros(4, 1, 3, 3))
    unknown = TabulatedJet((3,), hessian=torch.full((4, 1, 3, 3), NAN))
    known = TabulatedJet((3,), hessian=torch.ones(4, 1, 3, 3))
    directions = Directions(torch.ones(1, 4, 1), torch.ones(1, 4, 3))
    term = SobolevTerm(order=2)
    assert evaluate(term, ours, known, directions, UNKNOWN).vanishes
    assert not evaluate(term, ours, unknown, directions, UNKNOWN).vanishes


# Scales


def test_the_scale_is_a_plain_mean_and_then_forgets():
    scales, means = RunningScales(memory=4), torch.arange(1.0, 9.0).double()
    seen = [float(scales.update("a", mean)) for mean in means]
    expected, mean = [], 0.0
    for count, value in enumerate(means.tolist(), start=1):
        mean += (value - mean) / min(count, 4)
        expected.append(mean)
    assert seen == pytest.approx(expected)
    assert seen[:4] == pytest.approx([1.0, 1.5, 2.0, 2.5])
    assert scales.state["a"][1] == 8


def test_a_target_without_derivative_is_no_scale():
    text = r"target of term 'a' must not vanish when it is normalized, got a mean of 0.0"
    with pytest.raises(ValueError, match=text):
        RunningScales().update("a", torch.tensor(0.0))


def test_a_target_whose_sum_overflows_is_finite_all_the_same():
    large = torch.full((2, 3), 2e38)
    jets = [TabulatedJet((3,), value=torch.zeros(2, 3)), TabulatedJet((3,), value=large)]
    term = SobolevTerm(order=0, discrepancy="l1", normalize="none")
    compared = evaluate(term, *jets, Directions())
    assert compared.known is None
    assert compared.reference is None


def compared_of(distance, reference, known=None):
    reference = None if reference is None else torch.tensor(reference).double()
    known = None if known is None else torch.tensor(known)
    return Comparison(torch.tensor(distance).double(), reference, known)


def test_all_processes_use_one_scale():
    def other_process_too(totals):  # its size, its pairs and itself
        return totals + torch.tensor([30.0, 1.0, 1.0])

    compared = compared_of([[4.0, 6.0]], [[4.0, 6.0]])
    total, size = reduce(SobolevTerm(), compared, RunningScales(), other_process_too)
    # Two of three pairs are here: the mean over both processes is that over the three.
    assert_close(total, torch.tensor(10.0).double() / (3 / 2) / (40.0 / 3))
    assert_close(size, torch.tensor(40.0).double())


@pytest.mark.parametrize("normalize", ["target", "none"])
def test_processes_that_know_different_numbers_of_rows_average_to_one_that_has_all(normalize):
    term, is_scaled = SobolevTerm(normalize=normalize), normalize == "target"
    processes = [
        compared_of(
            [[4.0, 6.0, 9.0]], [[1.0, 2.0, 3.0]] if is_scaled else None, [[True, False, False]]
        ),
        compared_of(
            [[5.0, 7.0, 8.0]], [[4.0, 5.0, 6.0]] if is_scaled else None, [[True, True, False]]
        ),
    ]
    sent = []
    for compared in processes:
        reduce(term, compared, RunningScales(), lambda vector: sent.append(vector) or vector)
    terms = [
        reduce(term, compared, RunningScales(), lambda _: sum(sent))[0] for compared in processes
    ]
    scale = (1.0 + 4.0 + 5.0) / 3 if is_scaled else 1.0
    assert_close(sum(terms) / 2, torch.tensor((4.0 + 5.0 + 7.0) / 3 / scale).double())


def test_only_known_pairs_enter_the_scale():
    compared = compared_of([[4.0, 9.0]], [[2.0, 0.0]], known=[[True, False]])
    total, size = reduce(SobolevTerm(), compared, RunningScales())
    assert_close(total, torch.tensor(2.0).double())
    assert_close(size, torch.tensor(2.0).double())


@pytest.mark.parametrize("normalize", ["target", "elements", "none"])
def test_a_batch_without_rows_has_no_term_and_leaves_the_scale(normalize, gradients):
    term, scales = SobolevTerm(normalize=normalize), RunningScales()
    full = evaluate(term, *map(scalar_jet, gradients), ALONG)
    before, _ = reduce(term, full, scales)
    kept = dict(scales.state)
    nowhere = Directions(ALONG.cotangents[:, :0])
    empty = evaluate(term, *[scalar_jet(g[:0]) for g in gradients], nowhere)
    assert_close(reduce(term, empty, scales)[0], torch.zeros_like(before))
    assert scales.state == kept


# Several calls


def comparison(*distances, known=None, vanishes=None):
    rows = torch.tensor([distances], dtype=torch.float64)
    mask = None if known is None else torch.tensor([known])
    flat = None if vanishes is None else torch.tensor(vanishes)
    return Comparison(rows, 2.0 * rows, mask, flat)


def test_calls_are_joined_row_after_row():
    whole = join([comparison(1.0, 2.0), comparison(3.0, 5.0, known=[True, False])])
    assert_close(whole.distance, torch.tensor([[1.0, 2.0, 3.0, 5.0]], dtype=torch.float64))
    assert_close(whole.reference, 2.0 * whole.distance)
    assert whole.known.tolist() == [[True, True, True, False]]
    mean, size = reduce(SobolevTerm(), whole, RunningScales())
    assert_close((float(mean), float(size)), (0.5, 12.0))  # (1 + 2 + 3) / (2 + 4 + 6)


def test_one_call_is_itself():
    alone = comparison(1.0, vanishes=True)
    assert join([alone]) is alone


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, False)])
def test_a_second_derivative_vanishes_where_it_does_in_every_call(first, second):
    whole = join([comparison(1.0, vanishes=first), comparison(2.0, vanishes=second)])
    assert bool(whole.vanishes) == (first and second)
