import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.experiments.band_limits.profile import BandProfile, accuracy
from lightning_sobolev.experiments.report.layouts import NOISES, RATES
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.layers import BandLimitedConv1d, band_limit

SHORT = ("+experiment=band_limits", "data=signals", "steps=3", "test_rows=100", "data.batch_size=8")


@pytest.mark.parametrize("rule", [("rate=50",), ("energy=90",)], ids=lambda rule: rule[0])
def test_a_run_tests_every_rate_and_noise(finished, rule):
    _, metrics = finished(*SHORT, *rule)
    tested = {f"test/accuracy_rate_{rate:g}" for rate in RATES}
    tested |= {f"test/accuracy_noise_{noise:g}" for noise in NOISES}
    assert tested <= metrics.keys()
    assert metrics["test/accuracy"] == pytest.approx(metrics["test/accuracy_noise_0"])
    if rule == ("rate=50",):
        assert metrics["test/accuracy_rate_50"] == metrics["test/accuracy_noise_0"]
    assert metrics["steps"] == 3


def test_a_table_and_a_picture_are_made_of_runs(finished, tmp_path):
    finished(*SHORT)
    written = report(tmp_path / "runs", tmp_path / "out")
    assert [path.name for path in written] == ["bandlimit.csv", "bandlimit.md", "bandlimit.png"]
    assert "mnist1d" in written[0].read_text()
    before = written[2].read_bytes()
    assert [path.name for path in report(written[0])] == ["bandlimit.md", "bandlimit.png"]
    assert written[2].read_bytes() == before


class _Waves(nn.Module):
    """Knows a fast wave from a slow one by what a convolution leaves of it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x):
        strength = self.conv(x)[:, 0].square().mean(-1)
        return torch.stack([strength, torch.full_like(strength, 0.1)], 1)


class _Loader:
    def __init__(self, batch):
        self.batch = batch

    def test_dataloader(self):
        return [self.batch]


def test_what_lies_beyond_the_cut_is_not_seen(tmp_path):
    place = 2 * torch.pi * torch.arange(40) / 40
    waves = torch.stack([torch.cos(k * place) for k in (2, 9)])[:, None]
    data = _Loader({"x": waves, "y": torch.zeros(2, dtype=torch.int64)})
    module = nn.Module()
    module.net = band_limit(_Waves(), 85.0)
    found = BandProfile(rate=85.0)(FinishedRun(module, data, tmp_path))
    # Of 21 frequencies 10 are left at rate 50, 5 at 75 and 3 at 85, 1 at 95.
    expected = {0: 1.0, 25: 1.0, 50: 1.0, 75: 0.5, 85: 0.5, 95: 0.0}
    assert {rate: found[f"test/accuracy_rate_{rate}"] for rate in expected} == expected
    assert found["test/accuracy_noise_0"] == 0.5
    assert type(module.net.conv) is BandLimitedConv1d
    assert module.net.conv.rate == 85.0


def test_accuracy_is_the_share_of_right_answers():
    batches = [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3)[:1], torch.tensor([0]))]
    assert_close(accuracy(lambda x: x, batches), 0.75)
