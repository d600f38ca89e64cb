r"""Closed forms for European calls: the value and its derivative with respect to the underlying.

Interest is zero. ``spread`` is the standard deviation of what happens between today and expiry:
of the price itself under Bachelier, of its logarithm under Black and Scholes.

Source:
    Bachelier 1900, Théorie de la spéculation; Black and Scholes 1973, The Pricing of Options and
    Corporate Liabilities. Test values: Hull, Options, Futures, and Other Derivatives.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require

Call = tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]  # values and deltas


def bachelier_call(price: Float[Tensor, " batch"], strike: float, spread: float) -> Call:
    r"""Price a call on a normally distributed underlying.

    .. math:: C = (P - K) \Phi(d) + s\, \varphi(d), \quad \partial_P C = \Phi(d), \quad
        d = (P - K) / s.
    """
    require(spread > 0, "spread", "positive", spread)
    d = (price - strike) / spread
    cumulative = torch.special.ndtr(d)
    density = torch.exp(-0.5 * d.square()) / math.sqrt(2 * math.pi)
    return (price - strike) * cumulative + spread * density, cumulative


def black_scholes_call(price: Float[Tensor, " batch"], strike: float, spread: float) -> Call:
    r"""Price a call on a log-normally distributed underlying.

    .. math:: C = P \Phi(d_1) - K \Phi(d_1 - s), \quad \partial_P C = \Phi(d_1), \quad
        d_1 = \ln(P / K) / s + s / 2.
    """
    require(strike > 0, "strike", "positive", strike)
    require(spread > 0, "spread", "positive", spread)
    d = (price / strike).log() / spread + 0.5 * spread
    delta = torch.special.ndtr(d)
    return price * delta - strike * torch.special.ndtr(d - spread), delta
