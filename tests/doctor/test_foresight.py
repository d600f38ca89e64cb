"""What the derivatives of a data set say of the change to the next point."""

import math

import pytest
import torch
from torch.func import jacrev, vmap
from torch.testing import assert_close

from lightning_sobolev.doctor.foresight import Foresight, foresight


def cloud(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def with_jacobian(fn, x):
    return x, vmap(fn)(x), vmap(jacrev(fn))(x)


def test_both_scores_of_an_affine_function_are_one():
    matrix = cloud(2, 12, seed=1)
    found = foresight(*with_jacobian(lambda x: matrix @ x.flatten() + 1, cloud(30, 4, 3)))
    assert_close(found.first_order, 1.0)
    assert_close(found.both_ends, 1.0)
    assert found.noise < 1e-12
    assert not found.harms


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_both_ends_explain_a_quadratic(dim):
    matrix = cloud(dim, dim, seed=1)
    found = foresight(*with_jacobian(lambda x: x @ matrix @ x, cloud(40, dim)))
    assert_close(found.both_ends, 1.0)
    assert found.first_order < 0.999


def test_first_order_misses_half_the_square_of_the_way():
    # Gaps that double: the nearest neighbor is the one before, and of the first the second.
    x = 2.0 ** torch.arange(8, dtype=torch.float64)
    other = torch.cat([x[1:2], x[:-1]])
    change, missed = (other**2 - x**2) / 2, (other - x) ** 2 / 2
    found = foresight(x[:, None], x**2 / 2, x[:, None], neighbors=1)
    assert_close(found.first_order, float(1 - (missed**2).sum() / (change**2).sum()))


def test_the_error_is_that_of_a_mean_over_pairs():
    x = 2.0 ** torch.arange(8, dtype=torch.float64)
    y = cloud(8)
    other = torch.cat([torch.tensor([1]), torch.arange(7)])
    change = y[other] - y
    left = change.square() - (change - (x[other] + x) / 2 * (x[other] - x)).square()
    expected = left.std() / math.sqrt(8) / change.square().mean()
    found = foresight(x[:, None], y, x[:, None], neighbors=1)
    assert found.noise == 0.0
    assert_close(found.error, float(expected))


def test_labels_without_a_meaning_mislead_or_are_open():
    x, y, jacobian = cloud(300, 2), cloud(300, seed=1), cloud(300, 2, seed=2)
    assert foresight(x, y, 100 * jacobian).harms
    flat = foresight(x, y, 0 * jacobian)
    assert flat.first_order == flat.both_ends == 0.0
    assert not flat.harms
    assert "open" in flat.text


def test_the_order_of_points_does_not_matter():
    x, y, jacobian = with_jacobian(lambda x: torch.sin(5 * x).sum(), cloud(60, 3))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    given, found = foresight(x, y, jacobian), foresight(x[order], y[order], jacobian[order])
    for name in ("first_order", "both_ends", "error", "noise"):
        assert_close(getattr(found, name), getattr(given, name))


def test_neither_units_nor_origin_of_the_inputs_matter():
    x, y, jacobian = with_jacobian(lambda x: torch.sin(3 * x).sum(), cloud(50, 2))
    units = torch.tensor([1000.0, 0.01], dtype=torch.float64)
    expected, found = foresight(x, y, jacobian), foresight(x * units + 1e3, y, jacobian / units)
    assert_close(found.first_order, expected.first_order)
    assert_close(found.both_ends, expected.both_ends)


@pytest.mark.parametrize("frequency", [200, 500])
def test_ripples_between_the_points_mislead_and_are_no_noise(frequency):
    found = foresight(*with_jacobian(lambda x: torch.sin(frequency * x).sum(), cloud(100, 2)))
    assert found.both_ends < -10
    assert found.noise == 0.0
    assert found.harms
    assert "mislead" in found.text


def test_points_too_far_apart_mislead_though_both_ends_explain_a_quadratic():
    found = foresight(*with_jacobian(lambda x: x @ x, cloud(100, 60)))
    assert_close(found.both_ends, 1.0)
    assert found.first_order < -10
    assert found.harms
    assert "too far apart" in found.text


def noisy(scale, repeats):
    x = cloud(1000 // repeats, 2, low=-2.0, high=2.0).repeat(repeats, 1)
    x, y, jacobian = with_jacobian(lambda x: torch.sin(2 * x).sum() + x @ x, x)
    noise = torch.randn(len(y), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, y, jacobian, scale * noise


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_the_noise_of_the_values_is_recovered_and_taken_off(scale, repeats):
    x, y, jacobian, noise = noisy(scale, repeats)
    exact, found = foresight(x, y, jacobian), foresight(x, y + noise, jacobian)
    apart = torch.cdist(x / x.std(0), x / x.std(0)).masked_fill_(
        (x[:, None] == x).all(-1), torch.inf
    )
    near = apart.topk(2, largest=False).indices
    changes = ((y + noise)[near] - (y + noise)[:, None]).square().mean()
    share = 2 * scale**2 / float(changes)
    assert exact.noise < 0.01
    assert abs(found.noise - share) < 0.15 * share  # twice the error of 500 squares
    assert abs(found.both_ends - exact.both_ends) < 0.1
    assert abs(found.first_order - exact.first_order) < 0.1
    assert "noise, taken off" in found.text


def test_unknown_entries_are_left_out():
    x, y, jacobian = with_jacobian(lambda x: torch.stack([torch.sin(9 * x[0]), x[1]]), cloud(50, 2))
    jacobian[:, 0, 1] = torch.nan  # no point is known to its end: what is left is affine
    assert_close(foresight(x, y, jacobian).both_ends, 1.0)
    jacobian[:, 0, 1] = 0.0
    jacobian[::2, 1] = torch.nan  # some pairs are known still
    assert foresight(x, y, jacobian).both_ends < 1.0


def test_an_unknown_entry_does_not_count_along_another_axis():
    x = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 0.0]])
    jacobian = torch.stack([2 * x[:, 0], torch.full((9,), torch.nan)], 1)
    assert_close(foresight(x, x[:, 0] ** 2, jacobian).both_ends, 1.0)


def test_a_function_that_does_not_change_is_explained_by_zeros_alone():
    x, y = cloud(20, 2), torch.ones(20)
    assert foresight(x, y, torch.zeros(20, 2)) == Foresight(1.0, 1.0, 0.0, 0.0)
    assert foresight(x, y, torch.ones(20, 2)) == Foresight(-math.inf, -math.inf, 0.0, 0.0)


def test_a_line_says_what_to_expect():
    assert Foresight(0.9, 0.984, 0.01, 0.0).text == (
        "the derivatives explain 98% of the change to the next point: they should help"
    )
    assert Foresight(-4.0, -1.0, 0.9, 0.0).text == (
        "the derivatives explain less than none of the change to the next point: at this distance "
        "between points they mislead"
    )
    assert Foresight(0.0, -0.01, 0.02, 0.8).text == (
        "the derivatives explain 0% of the change to the next point (80% of it is noise, taken off)"
        ", give or take 2%: it is open whether they help"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.zeros(1, 2)}, "x must be .points, .in. with two points"),
        ({"x": torch.zeros(5)}, "jacobian must be .points, .out, .in., here .5."),
        ({"x": torch.full((5, 2), torch.nan)}, "x must be finite, got .NaN"),
        ({"x": torch.zeros(5, 2)}, "jacobian must be known at two different points"),
        ({"y": torch.zeros(4)}, "y must be .5, .out."),
        ({"y": torch.full((5,), torch.inf)}, "y must be finite"),
        ({"jacobian": torch.zeros(5, 3)}, r"jacobian must be .*here \[5, 2\], got \[5, 3\]"),
        ({"jacobian": torch.full((5, 2), torch.inf)}, "jacobian must be finite or NaN"),
        ({"jacobian": torch.full((5, 2), torch.nan)}, "jacobian must be known"),
        ({"neighbors": 0}, "neighbors must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    x = cloud(5, 2)
    given = {"x": x, "y": x.sum(1), "jacobian": torch.ones(5, 2)} | change
    with pytest.raises(ValueError, match=match):
        foresight(**given)


def test_numbers_without_an_axis_are_rows_of_one():
    x = torch.linspace(0, 3, 40, dtype=torch.float64)
    bare = foresight(x, x.sin(), x.cos())
    assert bare == foresight(x[:, None], x.sin()[:, None], x.cos()[:, None, None])
