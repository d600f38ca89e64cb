"""Training against attacks, and what is measured afterwards."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_sobolev.adversarial import GradientAttack
from lightning_sobolev.experiments.noise_injection.module import AdversarialModule, level_and_color
from lightning_sobolev.layers import NoiseInjection, noise_penalty
from tests.plugin._trainers import QUIET, as_loader

TESTED = {"accuracy", "fgsm_accuracy", "pgd_accuracy"}
WITH_NOISE = {"expected_pgd_accuracy", "quiet_accuracy", "quiet_pgd_accuracy"}
WITH_NOISE |= {"noise_level", "noise_colour"}


@pytest.fixture
def batch(generator):
    x = torch.rand(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.arange(12) % 3}


def built(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    return AdversarialModule(net, partial(torch.optim.Adam, lr=0.1), **{"draws": 3, **options})


def quiet_trainer():
    return pl.Trainer(**{**QUIET, "max_steps": 4})


@pytest.mark.parametrize(
    ("noise", "defended"), [("none", True), ("colored", True), ("none", False)]
)
def test_the_loss_is_half_clean_half_attacked(noise, defended, batch, monkeypatch):
    module = built(noise=noise, penalty=0.5, defended=defended)
    monkeypatch.setattr(module, "log", lambda *_: None)
    torch.manual_seed(4)
    loss = module.training_step(batch, 0)
    torch.manual_seed(4)
    expected = cross_entropy(module(batch["x"]), batch["y"])
    if defended:
        attacked = GradientAttack(radius=0.1, steps=7)(module.net, batch["x"], batch["y"])
        expected = 0.5 * expected + 0.5 * cross_entropy(module(attacked), batch["y"])
    if noise != "none":
        expected = expected + 0.5 * noise_penalty(module.net)
    assert_close(loss, expected)


@pytest.mark.parametrize("noise", ["none", "white", "colored"])
def test_everything_is_measured(noise, batch):
    module = built(noise=noise)
    used, loader = quiet_trainer(), as_loader([batch])
    used.fit(module, loader, loader)
    assert {"val/accuracy", "val/attacked_accuracy"} <= set(used.callback_metrics)
    found = used.test(module, loader, verbose=False)[0]
    names = {key.removeprefix("test/") for key in found}
    assert names == TESTED | (WITH_NOISE if noise != "none" else set())
    assert found["test/pgd_accuracy"] <= found["test/accuracy"]
    assert found.get("test/noise_colour", 0.0) > 0 or noise != "colored"


def test_quiet_numbers_are_those_of_the_weights_alone(batch):
    module, plain = built(noise="white"), built(noise="none")
    with torch.no_grad():
        for noise in [part for part in module.modules() if isinstance(part, NoiseInjection)]:
            noise.alpha.fill_(50.0)  # nothing is left of the answers
        plain.net[1].weight.copy_(module.net[1].parametrizations.weight.original)
        plain.net[1].bias.copy_(module.net[1].bias)
    loader = as_loader([batch])
    found = quiet_trainer().test(module, loader, verbose=False)[0]
    expected = quiet_trainer().test(plain, loader, verbose=False)[0]
    assert found["test/quiet_accuracy"] == expected["test/accuracy"]
    assert found["test/noise_level"] == 50.0
    assert all(n.at_evaluation for n in module.modules() if isinstance(n, NoiseInjection))


def test_accuracy_is_a_mean_over_draws(batch):
    """Answers that noise alone decides: the mean over many draws is near one third."""
    module = built(noise="white", draws=400)
    with torch.no_grad():
        module.net[1].parametrizations.weight[0].alpha.fill_(1e4)
    assert module._accuracy(batch["x"], batch["y"]) == pytest.approx(1 / 3, abs=0.05)


def test_level_and_share_of_known_noise():
    module = built(noise="colored", rank=2)
    noise = module.net[1].parametrizations.weight[0]
    with torch.no_grad():
        noise.alpha.fill_(3.0)
        noise.factor.fill_(0.0)
        noise.factor[1].fill_(4.0)
    level, color = level_and_color(module)
    assert (float(level), float(color)) == pytest.approx((5.0, 16 / 25))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"noise must be one of .*, got 'pink'"):
        built(noise="pink")
    with pytest.raises(ValueError, match="penalty must be at least 0, got -1"):
        built(penalty=-1)
