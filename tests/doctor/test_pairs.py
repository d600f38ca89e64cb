import torch
from torch.testing import assert_close

from lightning_sobolev.doctor import pairs
from lightning_sobolev.doctor.pairs import near_pairs


def nearest(x):
    """Number of the nearest other point of each, in standard deviations of each input."""
    scaled = x / x.std(0)
    apart = (scaled[:, None] - scaled[None]).square().sum(-1)
    return apart.fill_diagonal_(torch.inf).argmin(1)


def test_of_many_points_with_many_inputs_fewer_are_asked_about(generator, monkeypatch):
    monkeypatch.setattr(pairs, "_LEAST_ASKED", 5)
    x = torch.randn(40, 3, generator=generator).double()
    for work, asked in ((40 * 3 * 8, 8), (1, 5), (2**31, 40)):
        monkeypatch.setattr(pairs, "_WORK", work)
        found = near_pairs(x, x[:, :1], neighbors=1)
        assert len(found.first) == asked
        assert_close(found.second, nearest(x)[found.first], rtol=0, atol=0)
        assert_close(found.dx, x[found.second] - x[found.first], rtol=0, atol=0)
