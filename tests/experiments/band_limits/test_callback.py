import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_sobolev.experiments.band_limits.callback import BandProfile, accuracy
from lightning_sobolev.layers import BandLimitedConv1d, band_limit
from tests.plugin._trainers import as_loader, trainer


class Waves(L.LightningModule):
    """Knows a fast wave from a slow one by what a convolution leaves of it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), Strength())
        nn.init.ones_(self.net[0].weight)

    def test_step(self, batch, batch_idx):
        pass


class Strength(nn.Module):
    def forward(self, x):
        strength = x[:, 0].square().mean(-1)
        return torch.stack([strength, torch.full_like(strength, 0.1)], 1)


def test_what_lies_beyond_the_cut_is_not_seen(tmp_path):
    place = 2 * torch.pi * torch.arange(40) / 40
    waves = torch.stack([torch.cos(k * place) for k in (2, 9)])[:, None].double()
    batch = {"x": waves, "y": torch.zeros(2, dtype=torch.int64)}
    module = Waves()
    band_limit(module.net, 85.0)
    used = trainer(BandProfile(rate=85.0), default_root_dir=tmp_path)
    found = used.test(module, as_loader([batch]), verbose=False)[0]
    # Of 21 frequencies 10 are left at rate 50, 5 at 75 and 3 at 85, 1 at 95.
    expected = {0: 1.0, 25: 1.0, 50: 1.0, 75: 0.5, 85: 0.5, 95: 0.0}
    assert {rate: found[f"test/accuracy_rate_{rate}"] for rate in expected} == expected
    assert found["test/accuracy_noise_0"] == 0.5
    assert type(module.net[0]) is BandLimitedConv1d
    assert module.net[0].rate == 85.0
    assert [path.name for path in tmp_path.iterdir()] == ["bands.png"]


def test_only_the_first_whole_batches_are_used(tmp_path):
    x = torch.ones(6, 1, 40, dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1, 1, 1])  # right answers come first
    loader = DataLoader([{"x": x[rows], "y": y[rows]} for rows in ([0, 1], [2, 3], [4, 5])], None)
    profile = BandProfile(rate=0.0, rows=3, rates=[0.0], noises=[0.0], figure=False)
    used = trainer(profile, default_root_dir=tmp_path)
    for _ in range(2):  # a second test begins anew
        found = used.test(Waves(), loader, verbose=False)[0]
        assert found["test/accuracy_rate_0"] == 0.75


def test_noise_is_the_same_for_every_network_and_of_the_stated_size():
    seen = []

    def net(x):
        seen.append(x)
        return x

    batches = [(torch.eye(3).repeat(400, 1), torch.arange(3).repeat(400))]
    assert accuracy(net, batches) == 1.0
    first, second = accuracy(net, batches, noise=2.0), accuracy(net, batches, noise=2.0)
    assert first == second < 1.0
    assert torch.equal(seen[1], seen[2])
    assert (seen[1] - seen[0]).std() == pytest.approx(2.0, rel=0.05)
