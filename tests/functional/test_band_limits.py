import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.functional.band_limits import (
    cut_spectrum,
    filled_signal,
    kept,
    kept_by_energy,
    low_pass,
)
from tests._reference import masked_by_numpy

SIZES = [(40,), (13,), (7, 12), (12, 12), (5, 1), (6, 9, 4)]


@pytest.mark.parametrize("rate", [30.0, 50.0, 85.0, 99.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_filtered_signal_has_the_kept_frequencies_alone(size, rate, generator):
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    assert_close(low_pass(x, rate, len(size)), masked_by_numpy(x, kept(size, rate)))


def test_the_filter_is_a_projection_that_is_its_own_transpose():
    basis = torch.eye(7 * 12, dtype=torch.float64).reshape(-1, 7, 12)
    matrix = low_pass(basis, 60.0, 2).reshape(84, 84)
    rows, columns = kept((7, 12), 60.0)
    assert_close(matrix, matrix.T)
    assert_close(matrix @ matrix, matrix)
    trace = torch.tensor((2 * rows - 1.0) * (2 * columns - 1.0), dtype=torch.float64)
    assert_close(matrix.trace(), trace)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rate_zero_cuts_nothing(size, generator):
    x = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    assert low_pass(x, 0.0, len(size)) is x
    assert_close(filled_signal(cut_spectrum(x, kept(size, 0.0)), size), x)


def test_half_precision_keeps_its_type():
    x = torch.linspace(0, 1, 16).bfloat16()
    filtered = low_pass(x, 50.0, 1)
    assert filtered.dtype == torch.bfloat16
    assert_close(filtered.float(), low_pass(x.float(), 50.0, 1), atol=1e-2, rtol=1e-2)


def _brute_force(x, energy):
    longest = max(size // 2 + 1 for size in x.shape[-2:])
    for step in range(1, longest + 1):
        counts = tuple(max(1, (size // 2 + 1) * step // longest) for size in x.shape[-2:])
        if masked_by_numpy(x, counts).square().sum() >= energy / 100 * x.square().sum() * (
            1 - 1e-9
        ):
            return counts
    raise AssertionError("the whole spectrum holds all the energy")


@pytest.mark.parametrize("energy", [30.0, 80.0, 95.0, 100.0])
def test_the_energy_rule_takes_the_smallest_block_that_holds_it(energy, generator):
    smooth = torch.randn(4, 2, 9, 22, generator=generator, dtype=torch.float64).cumsum(-1)
    assert kept_by_energy(smooth, energy, 2) == _brute_force(smooth, energy)


def test_silence_has_a_smallest_block():
    assert kept_by_energy(torch.zeros(2, 8), 90.0, 1) == (1,)


@pytest.mark.parametrize("rate", [-1.0, 100.0, float("nan"), "50", True])
def test_a_rate_that_is_no_percentage_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 100\), in percent .*, got"):
        low_pass(torch.ones(4), rate, 1)


@pytest.mark.parametrize("energy", [0.0, 101.0, float("nan")])
def test_an_energy_that_is_no_percentage_is_refused(energy):
    with pytest.raises(ValueError, match=r"energy must be in \(0, 100\], in percent, got"):
        kept_by_energy(torch.ones(4), energy, 1)


def test_more_axes_than_there_are_are_refused():
    with pytest.raises(ValueError, match="num_axes must be from 1 to the 2 axes of x, got 3"):
        low_pass(torch.ones(2, 4), 50.0, 3)
