"""Points that are made of the inputs of a batch: what they hold, and how often."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import Linear, Mixup, Noise, Recombine, Shift, SobolevTerm
from lightning_sobolev.points import points_at


def rows_of(count, *shape):
    """Rows that tell what came from where: 1000 times the row plus the number of the element."""
    size = torch.Size(shape).numel()
    numbers = 1000.0 * torch.arange(count)[:, None] + torch.arange(size)
    return numbers.double().reshape(count, *shape)


def made(points, x, seed=0, step=0):
    return points_at(points, x, torch.Generator().manual_seed(seed), lambda: step)


def parents(moved):
    """Return which row each element came from; its place is unchanged."""
    element = moved.reshape(len(moved), -1) % 1000
    assert_close(element, torch.arange(element.shape[1]).double().expand_as(element))
    return (moved.reshape(len(moved), -1) // 1000).long()


PICTURES = rows_of(20, 2, 12, 10)
KINDS = {
    "elements": (rows_of(20, 7), "elements"),
    "elements of numbers": (rows_of(20), "elements"),
    "boxes": (PICTURES, "cutmix"),
    "cells": (PICTURES, "grid:3"),
    "segments": (rows_of(20, 1, 30), "cutmix"),
    "cells of a signal": (rows_of(20, 3, 30), "grid:4"),
    "volumes": (rows_of(6, 1, 5, 6, 4), ("cutmix", "grid:2")),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_part_comes_from_two_rows_and_keeps_its_place(name):
    x, kinds = KINDS[name]
    found = parents(made(Recombine(share=1.0, kinds=kinds), x))
    own = torch.arange(len(x))[:, None]
    others = found[(found != own).any(1)]
    assert len(others) >= len(x) // 4
    for row, numbers in enumerate(found):
        assert len(set(numbers.tolist()) - {row}) <= 1


def test_boxes_are_boxes_and_alike_in_all_channels():
    found = parents(made(Recombine(share=1.0, kinds="cutmix"), PICTURES)).reshape(20, 2, 12, 10)
    mixed = found != torch.arange(20)[:, None, None, None]
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    for mask in mixed[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        for line, size in ((rows, 12), (columns, 10)):
            inside = line.nonzero()[:, 0]
            assert len(inside) == int(inside.max() - inside.min()) + 1  # without a gap
            assert 0.1 * size - 1 <= len(inside) <= 0.8 * size + 1


def test_cells_are_of_one_row_each():
    found = parents(made(Recombine(share=1.0, kinds="grid:2"), PICTURES)).reshape(20, 2, 12, 10)
    cells = found.reshape(20, 2, 2, 6, 2, 5)
    assert torch.equal(cells.amin((1, 3, 5)), cells.amax((1, 3, 5)))


def test_each_element_comes_from_the_partner_with_equal_chance():
    x = rows_of(400, 20)
    found = parents(made(Recombine(share=1.0), x))
    assert abs(float((found != torch.arange(400)[:, None]).double().mean()) - 0.5) < 0.02


def test_all_partners_have_equal_chance_and_nobody_is_its_own():
    x, counts = rows_of(5, 1, 8), torch.zeros(5, 5)
    for seed in range(600):
        found = parents(made(Recombine(share=1.0, kinds="cutmix"), x, seed))
        for row, numbers in enumerate(found):
            for other in set(numbers.tolist()) - {row}:
                counts[row, other] += 1
    assert (counts.diagonal() == 0).all()
    rates = counts / counts.sum(1, keepdim=True)
    assert (rates[~torch.eye(5).bool()] - 0.25).abs().max() < 0.08


@pytest.mark.parametrize("share", [0.25, 0.75, 1.0])
def test_a_share_of_the_rows_is_moved(share):
    moved = made(Noise(share=share), PICTURES)
    assert int((moved != PICTURES).flatten(1).any(1).sum()) == round(20 * share)


def test_a_share_may_follow_a_schedule():
    points = Noise(share=Linear(1.0, 0.0, steps=10))
    counts = [int((made(points, PICTURES, step=s) != PICTURES).flatten(1).any(1).sum())
              for s in (0, 5, 10)]  # fmt: skip
    assert counts == [20, 10, 0]


def test_noise_has_its_deviation():
    x = torch.zeros(500, 20, dtype=torch.float64)
    assert abs(float(made(Noise(std=0.3), x).std()) - 0.3) < 0.01


def test_mixtures_lie_on_the_way_to_another_row():
    x = torch.eye(6, dtype=torch.float64)
    moved = made(Mixup(), x)
    assert_close(moved.sum(1), torch.ones(6).double())
    assert (moved.diagonal() > 0).all()
    assert torch.equal((moved > 0).sum(1), torch.full((6,), 2))


def test_shifts_repeat_the_border():
    x = torch.arange(30.0).double().reshape(1, 1, 30).repeat(200, 1, 1)
    moved = made(Shift(most=3), x)
    offsets = moved[:, 0, 15] - 15
    assert set(offsets.tolist()) == set(range(-3, 4))
    expected = (torch.arange(30) + offsets[:, None]).clamp(0, 29)
    assert_close(moved[:, 0], expected.double())


def test_pictures_are_shifted_along_both_axes_by_themselves():
    moved = made(Shift(most=2), PICTURES[:1].repeat(300, 1, 1, 1))
    columns = moved[:, 0, 6, 5] % 10 - 5
    rows = (moved[:, 0, 6, 5] % 1000) // 10 - 6
    pairs = {(int(a), int(b)) for a, b in zip(rows, columns, strict=True)}
    assert len(pairs) == 25


@pytest.mark.parametrize("points", [Recombine(), Mixup(), Noise(), Shift()])
def test_what_is_random_comes_from_the_generator_alone(points):
    before = torch.get_rng_state()
    first, again, other = (made(points, PICTURES, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("points", [Recombine(), Mixup(), Noise(), Shift()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_default_type_of_a_trainer_s_precision_changes_no_point(points, dtype):
    before = torch.get_default_dtype()
    x, found = PICTURES.repeat(1, 1, 20, 1).to(dtype), []
    try:
        for default in (torch.float32, torch.float64, torch.bfloat16):
            torch.set_default_dtype(default)
            found.append(made(points, x))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("points", [Recombine(), Mixup()])
def test_a_single_row_has_no_partner(points):
    assert torch.equal(made(points, PICTURES[:1]), PICTURES[:1])


REFUSED = [
    (lambda: Recombine(share=0.0), r"share must be in \(0, 1\] or a schedule, got 0.0"),
    (lambda: Recombine(share=None), r"share must be in \(0, 1\] or a schedule, got None"),
    (lambda: Recombine(share="0.5"), r"share must be in \(0, 1\] or a schedule, got '0.5'"),
    (lambda: made(Mixup(), PICTURES.byte()), "points must be Mixup of float.*, got torch.uint8"),
    (lambda: made(Noise(), PICTURES.long()), "points must be Noise of float.*, got torch.int64"),
    (lambda: Recombine(kinds="boxes"), "kinds must be some of 'cutmix'.*got 'boxes'"),
    (lambda: Recombine(kinds=()), "kinds must be"),
    (lambda: Recombine(kinds="grid:1"), "kinds must be"),
    (lambda: Noise(std=0.0), "std must be a finite number > 0, got 0.0"),
    (lambda: Shift(most=0), "most must be at least 1, got 0"),
    (lambda: SobolevTerm(points="recombine"), "points must be None, a kind of points or a"),
    (lambda: made(Shift(), rows_of(4, 3)), r"points must be Shift for .* got \[4, 3\]"),
    (lambda: made(Recombine(kinds="cutmix"), rows_of(4, 3)), "points must be 'elements' for"),
    (lambda: made(lambda x, _: x[1:], rows_of(4, 3)), r"function that returns \[4, 3\] .*\[3, 3\]"),
    (lambda: made(lambda *_: None, rows_of(4, 3)), "function that returns .* got 'NoneType'"),
    (lambda: made(Noise(share=Linear(2.0, 0.0, steps=2)), PICTURES), "share at step 0 must be"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED)
def test_what_makes_no_points_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
