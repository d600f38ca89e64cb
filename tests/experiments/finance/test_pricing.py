import math

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.finance.pricing import bachelier_call, black_scholes_call

PRICES = torch.tensor([70.0, 95.0, 110.0, 140.0], dtype=torch.float64)


def expected_payoff(prices, strike, moved):
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    payoffs = (moved(prices[:, None], z) - strike).clamp_min(0)
    return torch.trapezoid(payoffs * density, z, dim=1)


@pytest.mark.parametrize(
    ("formula", "spread", "moved"),
    [
        (bachelier_call, 15.0, lambda p, z: p + 15 * z),
        (black_scholes_call, 0.3, lambda p, z: p * torch.exp(0.3 * z - 0.045)),
    ],
)
def test_prices_are_the_expected_payoff(formula, spread, moved):
    value, _ = formula(PRICES, 100.0, spread)
    assert_close(value, expected_payoff(PRICES, 100.0, moved), rtol=1e-7, atol=0)
    with pytest.raises(ValueError, match=r"spread must be positive, got 0"):
        formula(PRICES, 100.0, 0.0)


def test_black_scholes_of_the_textbook():
    # at the money, a fifth of volatility, one year, no interest: 7.9656
    value, delta = black_scholes_call(torch.tensor([100.0], dtype=torch.float64), 100.0, 0.2)
    assert_close(value.item(), 7.965567455405804, rtol=1e-12, atol=0)
    assert_close(delta.item(), 0.539827837277029, rtol=1e-12, atol=0)


@pytest.mark.parametrize("formula", [bachelier_call, black_scholes_call])
def test_delta_is_the_derivative_of_the_value(formula):
    x = PRICES.clone().requires_grad_()
    value, delta = formula(x, 100.0, 0.4)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert_close(delta.detach(), gradient)
