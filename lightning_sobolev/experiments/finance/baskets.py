"""A call on a basket of correlated assets: simulated payoffs with their pathwise derivatives.

Interest is zero and every asset costs 100 today. A *state* is the vector of asset prices at the
horizon; the call's value there is what is to be learned, and a simulated payoff is a label for it.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.finance.pricing import bachelier_call, black_scholes_call

Model = Literal["bachelier", "black_scholes"]
TODAY = 100.0
_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BasketCall:
    r"""A European call on :math:`\sum_i w_i S_i`, seen from the horizon.

    Under ``bachelier`` prices move by :math:`100\,\sigma_i \sqrt{t}\, z_i`, under
    ``black_scholes`` their logarithms by :math:`\sigma_i \sqrt{t}\, z_i - \sigma_i^2 t / 2`, with
    standard normal z of one correlation matrix.
    """

    model: Model
    weights: Float[Tensor, " assets"]  # shares, positive, with sum one
    volatilities: Float[Tensor, " assets"]  # yearly, as a fraction of the price
    factor: Float[Tensor, "assets assets"]  # lower triangular, of the correlation matrix
    strike: float = 110.0  # what the basket may be bought for
    horizon: float = 1.0  # years from today to the states
    expiry: float = 2.0  # and to the payoff

    def __post_init__(self) -> None:
        known = self.model in ("bachelier", "black_scholes")
        require(known, "model", "bachelier or black_scholes", self.model)
        ordered = 0 < self.horizon < self.expiry
        require(ordered, "horizon", f"between 0 and expiry={self.expiry}", self.horizon)

    @classmethod
    def drawn(cls, model: Model, assets: int, *, seed: int = 0) -> Self:
        """Return a basket with random shares, volatilities (10 to 30 %) and correlations."""
        require(assets >= 1, "assets", "at least 1", assets)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(2, assets, generator=generator, dtype=torch.float64)
        loadings = torch.randn(assets, 2 * assets, generator=generator, dtype=torch.float64)
        loadings = loadings + 1.0  # a common factor: assets rather rise and fall together
        loadings = loadings / loadings.norm(dim=1, keepdim=True)
        shares = 0.5 + uniform[0]
        return cls(
            model=model,
            weights=shares / shares.sum(),
            volatilities=0.1 + 0.2 * uniform[1],
            factor=torch.linalg.cholesky(loadings @ loadings.T),
        )

    def states(self, count: int, generator: torch.Generator) -> Float[Tensor, "states assets"]:
        """Simulate prices at the horizon."""
        noise = torch.randn(count, len(self.weights), generator=generator, dtype=torch.float64)
        today = torch.full_like(noise, TODAY)
        return self._moved(today, noise, self.horizon)

    def payoffs(
        self, states: Float[Tensor, "states assets"], generator: torch.Generator
    ) -> tuple[Float[Tensor, " states"], Float[Tensor, "states assets"]]:
        r"""Simulate one path from every state to expiry.

        The pathwise derivative of :math:`\max(B_T - K, 0)` is
        :math:`1[B_T > K]\, w_i\, \partial S_{T,i} / \partial S_i`; its mean is the delta, since
        the payoff is continuous.

        Source:
            Broadie and Glasserman 1996, Estimating Security Price Derivatives Using Simulation.
        """
        noise = torch.randn(states.shape, generator=generator, dtype=torch.float64)
        end = self._moved(states, noise, self.expiry - self.horizon)
        gain = end @ self.weights - self.strike
        slope = torch.ones_like(states) if self.model == "bachelier" else end / states
        return gain.clamp_min(0), (gain > 0)[:, None] * self.weights * slope

    def prices(
        self, states: Float[Tensor, "states assets"], *, paths: int = 2**15
    ) -> tuple[Float[Tensor, " states"], Float[Tensor, "states assets"]]:
        """Return values and deltas, exact where there is a closed form.

        That is Bachelier, where the basket is normal, and a single asset. A Black-Scholes basket
        is integrated over the points of a scrambled Sobol sequence, the same ones for all states.
        """
        time = self.expiry - self.horizon
        basket = states @ self.weights
        if self.model == "bachelier":
            loads = TODAY * (self.weights * self.volatilities) @ self.factor
            value, slope = bachelier_call(basket, self.strike, float(loads.norm()) * time**0.5)
        elif len(self.weights) == 1:
            spread = float(self.volatilities) * time**0.5
            value, slope = black_scholes_call(basket, self.strike, spread)
        else:
            return self._integrated(states, time, paths)
        return value, slope[:, None] * self.weights

    def _moved(self, start: Tensor, noise: Tensor, time: float) -> Tensor:
        moves: Tensor = self.volatilities * time**0.5 * (noise @ self.factor.T)
        if self.model == "bachelier":
            return start + TODAY * moves
        moved: Tensor = start * torch.exp(moves - 0.5 * self.volatilities.square() * time)
        return moved

    def _integrated(self, states: Tensor, time: float, paths: int) -> tuple[Tensor, Tensor]:
        sobol = torch.quasirandom.SobolEngine(len(self.weights), scramble=True, seed=0)  # type: ignore[no-untyped-call]
        # The first scrambled points may be zero to rounding, where the normal has no quantile.
        unit = sobol.draw(paths, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        growth = self._moved(torch.ones_like(unit), torch.special.ndtri(unit), time)
        values, deltas = [], []
        for part in torch.split(states, _CHUNK):
            gain = (part * self.weights) @ growth.T - self.strike
            values.append(gain.clamp_min(0).mean(1))
            deltas.append((gain > 0).double() @ growth / paths * self.weights)
        return torch.cat(values), torch.cat(deltas)
