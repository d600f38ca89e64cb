import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.functional.fisher import fisher
from lightning_sobolev.functional.projections import (
    GOLDEN,
    PROJECTIONS,
    counter_draw,
    draw,
    generator_for,
    hash_words,
    mix,
    shifted,
    signed,
)
from tests import _laws

REST = {"scalar": (), "one": (1,), "vector": (5,), "image": (2, 3)}


@pytest.fixture(params=PROJECTIONS)
def kind(request):
    return request.param


@pytest.fixture(params=REST)
def rest(request):
    return REST[request.param]


def _counts(kind, rest):
    size = torch.Size(rest).numel()
    return [1, *([4] if kind != "basis" or size >= 4 else []), *([None] if kind == "basis" else [])]


def test_draw_has_the_shape_that_was_asked_for(kind, rest, generator):
    size = torch.Size(rest).numel()
    for count in _counts(kind, rest):
        directions = draw(kind, (3, *rest), num_projections=count, generator=generator)
        assert directions.shape == (size if count is None else count, 3, *rest)
        assert directions.dtype == torch.float64


def test_second_moment_is_the_identity(kind, rest, generator):
    """E[u u^T] = I: unbiased and of one scale, for any number of projections."""
    batch, size = 4, torch.Size(rest).numel()
    for count in _counts(kind, rest):
        moments = []
        for _ in range(1500 // batch):
            u = draw(kind, (batch, *rest), num_projections=count, generator=generator)
            u = u.reshape(len(u), batch, size)
            moments.append(torch.einsum("pbi,pbj->bij", u, u) / len(u))
        _laws.assert_unbiased(torch.cat(moments), torch.eye(size))


@pytest.mark.parametrize("given", [True, False])
def test_every_basis_direction_gives_the_frobenius_norm_exactly(given, rest, generator):
    size = torch.Size(rest).numel()
    jacobian = torch.randn(3, size, 7, generator=generator)
    count = size if given else None
    u = draw("basis", (3, *rest), num_projections=count, generator=generator)
    rows = torch.einsum("pbo,boi->pbi", u.reshape(size, 3, size), jacobian)
    assert_close(rows.square().sum(-1).mean(0), jacobian.square().sum((1, 2)))


def test_basis_directions_of_a_row_are_distinct_and_differ_between_rows(generator):
    u = draw("basis", (50, 6), num_projections=3, generator=generator)
    assert_close(u.sum(-1), torch.full((3, 50), 6**0.5))
    assert_close(u.sum(0).count_nonzero(-1), torch.full((50,), 3))
    assert len(u[0].argmax(-1).unique()) == 6


def test_sphere_vectors_have_the_root_of_their_size_as_norm(rest, generator):
    u = draw("sphere", (6, *rest), num_projections=4, generator=generator)
    norms = u.reshape(4, 6, -1).norm(dim=-1)
    assert_close(norms, torch.full((4, 6), torch.Size(rest).numel() ** 0.5))


def test_the_sphere_is_drawn_from_everywhere(generator):
    """The fourth moment of an entry is 3 C / (C + 2); of a sign it is 1."""
    u = draw("sphere", (20_000, 4), num_projections=1, generator=generator)
    assert abs(float(u.pow(4).mean()) - 2.0) < 0.05


def test_rademacher_entries_are_signs(generator):
    u = draw("rademacher", (6, 5), num_projections=4, generator=generator)
    assert_close(u.abs(), torch.ones_like(u), atol=0.0, rtol=0.0)


def test_low_precision_is_a_rounded_float32_draw(kind):
    half, single = (
        draw(kind, (4, 5), num_projections=2, generator=generator_for(3), dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.dtype == torch.bfloat16
    assert_close(half, single.bfloat16(), atol=0.0, rtol=0.0)


def test_generator_depends_on_every_word_on_their_order_and_number():
    words = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (-1,), (2**40,), (1, 2, 3, 4), (1, 2, 4, 3)]
    assert len({generator_for(*w).initial_seed() for w in words}) == len(words)
    # a CPU generator reads the low 32 bits of its seed only
    assert len({generator_for(*w).initial_seed() % 2**32 for w in words}) == len(words)
    assert generator_for(1, 2).initial_seed() == generator_for(1, 2).initial_seed()


def test_a_run_that_is_resumed_by_a_later_release_draws_the_same():
    assert hash_words(1, -2, 3) == 2_273_346_280_645_579_143


def test_a_generator_is_seeded_anew(generator):
    torch.rand(3, generator=generator)
    assert generator_for(1, 2, generator=generator) is generator
    again = torch.rand(3, generator=generator_for(1, 2))
    assert_close(torch.rand(3, generator=generator), again, rtol=0, atol=0)


def test_counter_draw_does_not_depend_on_the_batch(kind, rest):
    index = torch.tensor([7, 0, 123456789012, 7, -3])
    together = counter_draw(kind, index, rest, seed=5, draw=2)
    assert together.shape == (5, *rest)
    for i in range(5):
        alone = counter_draw(kind, index[i : i + 1], rest, seed=5, draw=2)
        assert_close(alone[0], together[i], atol=0.0, rtol=0.0)
    backwards = counter_draw(kind, index.flip(0), rest, seed=5, draw=2)
    assert_close(backwards.flip(0), together, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("varied", ["index", "draw", "seed"])
def test_counter_draw_has_identity_as_second_moment(kind, rest, varied):
    """Along each of the three counters the directions behave like independent ones."""
    size = torch.Size(rest).numel()
    if varied == "index":
        u = counter_draw(kind, torch.arange(4000), rest, seed=1, draw=0)
    else:
        fixed = {"seed": 1, "draw": 0}
        u = torch.cat(
            [
                counter_draw(kind, torch.tensor([3]), rest, **(fixed | {varied: i}))
                for i in range(1000)
            ]
        )
    u = u.reshape(-1, size)
    _laws.assert_unbiased(u[:, :, None] * u[:, None, :], torch.eye(size))
    if kind != "basis":
        _laws.assert_unbiased(u, torch.zeros(size))
        _laws.assert_unbiased(u[1:] * u[:-1], torch.zeros(size))


def test_counter_draw_gaussian_has_normal_moments():
    u = counter_draw("gaussian", torch.arange(50_000), (2,), seed=0, draw=0).flatten()
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        _laws.assert_unbiased(u**power, torch.tensor(expected))


def test_counter_draw_of_known_numbers_stays_what_it_is():
    """Stored projections must be found again by a later release."""
    u = counter_draw("rademacher", torch.tensor([0, 1]), (8,), seed=0, draw=0)
    v = counter_draw("basis", torch.tensor([0, 1, 2, 3]), (8,), seed=0, draw=0)
    assert u.long().tolist() == [[1, -1, 1, 1, -1, -1, -1, 1], [1, 1, 1, 1, -1, -1, 1, 1]]
    assert v.argmax(-1).tolist() == [6, 4, 4, 7]


def test_hash_gives_the_published_numbers_of_splitmix64():
    """The first outputs of the generator from state 1234567."""
    states = torch.tensor([1234567, 1234567 + signed(GOLDEN)])
    expected = [6457827717110365317, 3203168211198807973]
    assert mix(states).tolist() == expected
    assert shifted(torch.tensor([-1]), 11).tolist() == [2**53 - 1]


def test_unknown_projection_lists_the_known_ones(generator):
    message = r"projection must be one of .*'sphere'.*, got 'spere'"
    with pytest.raises(ValueError, match=message):
        draw("spere", (2, 3), num_projections=1, generator=generator)
    with pytest.raises(ValueError, match=message):
        counter_draw("spere", torch.arange(2), (3,), seed=0, draw=0)


def test_impossible_numbers_of_projections_are_errors(generator):
    with pytest.raises(ValueError, match=r"num_projections must be at least 1, got 0"):
        draw("sphere", (2, 3), num_projections=0, generator=generator)
    with pytest.raises(ValueError, match=r"at most the 3 basis directions, got 4"):
        draw("basis", (2, 3), num_projections=4, generator=generator)
    with pytest.raises(ValueError, match=r"needs projection 'basis', got projection 'sphere'"):
        draw("sphere", (2, 3), num_projections=None, generator=generator)
    with pytest.raises(ValueError, match=r"shape must be \[batch, \*rest\]"):
        draw("sphere", (), num_projections=1, generator=generator)


def test_counter_draw_wants_a_vector_of_integers():
    with pytest.raises(ValueError, match=r"vector of integers, got torch.float64 of shape \[2\]"):
        counter_draw("sphere", torch.ones(2), (3,), seed=0, draw=0)
    with pytest.raises(ValueError, match=r"vector of integers, got torch.int64 of shape \[\]"):
        counter_draw("sphere", torch.tensor(2), (3,), seed=0, draw=0)


def test_fisher_cotangents_see_the_trace_of_the_fisher_information(generator):
    log_probs = torch.log_softmax(torch.randn(3, 4, generator=generator), -1)
    jacobian = torch.randn(3, 4, 5, generator=generator)
    u = fisher(log_probs, num_projections=40_000, generator=generator)
    seen = torch.einsum("pbc,bcd->pbd", u, jacobian).square().sum(-1).mean(0)
    expected = (log_probs.exp() * jacobian.square().sum(-1)).sum(-1)
    assert_close(seen, expected, rtol=0.02, atol=0.0)


def test_counter_draws_on_the_sphere_have_its_radius():
    drawn = counter_draw("sphere", torch.arange(7), (2, 3), seed=1, draw=2, dtype=torch.float64)
    assert_close(drawn.flatten(1).square().sum(1), torch.full((7,), 6.0, dtype=torch.float64))
    assert drawn.flatten(1).std(0).min() > 0.1
