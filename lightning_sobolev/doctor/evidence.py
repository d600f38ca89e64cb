r"""What near pairs of points say of stored derivatives: regressions, with error bars.

The difference of two values is explained by the trapezoid of the stored derivatives,

.. math:: y_j - y_i \approx \tfrac12 (J_i + J_j)(x_j - x_i),

which is exact for quadratic functions. All here are sums over pairs; their error bars come from
random weights of the *points* (a Bayesian bootstrap), because pairs that share a point are no
independent evidence. A pair takes the weights of both its points, which makes the bars up to twice
as wide as they need be.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_sobolev.doctor.gather import Samples
from lightning_sobolev.doctor.pairs import Pairs, near_pairs

_DRAWS = 200
_CHUNK = 2**22
"""Most numbers of a block of Jacobians."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A regression on one or several parts of the prediction.

    Args:
        slope: Coefficient of each part.
        corr: Its partial correlation with the differences, given the other parts.
        error: Standard error of the slope.
        left: Share of the differences' squares that all parts together leave unexplained.
        lefts: The same under every draw of the points' weights.
    """

    slope: Float[Tensor, "*parts"]
    corr: Float[Tensor, "*parts"]
    error: Float[Tensor, "*parts"]
    left: Float[Tensor, "*outputs"]
    lefts: Float[Tensor, "draws *outputs"]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights of the pairs; the first row is ones, the others are draws."""

    pairs: Float[Tensor, "draws pairs"]

    @classmethod
    def of(cls, pairs: Pairs) -> "Weights":
        """Draw exponential weights of the points; a pair weighs as both its points."""
        points, places = torch.unique(torch.cat([pairs.first, pairs.second]), return_inverse=True)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.empty(_DRAWS, len(points), dtype=torch.float64)
        drawn.exponential_(generator=generator)
        first, second = torch.cat([torch.ones(1, len(points)).double(), drawn])[:, places].chunk(
            2, 1
        )
        return cls(first * second)

    def fit(self, dy: Float[Tensor, "pairs out"], parts: Float[Tensor, "parts pairs out"]) -> Fit:
        """Regress the differences of all outputs together on parts of the prediction."""
        stacked = torch.cat([parts, dy[None]])
        return self._solved(torch.einsum("mpo,npo->pmn", stacked, stacked))

    def fit_outputs(self, dy: Float[Tensor, "pairs out"], along: Float[Tensor, "pairs out"]) -> Fit:
        """Regress the differences of each output on its own prediction."""
        both = torch.stack([along, dy], -1)
        fit = self._solved(both[..., :, None] * both[..., None, :])
        one = {name: getattr(fit, name).squeeze(-1) for name in ("slope", "corr", "error")}
        return Fit(**one, left=fit.left, lefts=fit.lefts)

    def _solved(self, products: Float[Tensor, "pairs *outputs parts parts"]) -> Fit:
        gram = (self.pairs @ products.flatten(1)).reshape(-1, *products.shape[1:])
        inner, cross, total = gram[..., :-1, :-1], gram[..., :-1, -1], gram[..., -1, -1]
        size = inner.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        floor = torch.where(size > 0, 1e-14 * size, torch.ones_like(size))
        inverse = torch.linalg.inv(inner + floor * torch.eye(inner.shape[-1], dtype=gram.dtype))
        slope = (inverse @ cross[..., None]).squeeze(-1)
        left = (total - (slope * cross).sum(-1)).clamp(min=0.0)
        pull = slope / inverse.diagonal(dim1=-2, dim2=-1).sqrt()
        corr = pull / (pull.square() + left[..., None]).sqrt().clamp(min=1e-300)
        share = left / total.clamp(min=1e-300)
        return Fit(slope[0], corr[0], slope[1:].std(0), share[0], share[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Samples, their near pairs, and the differences in units of each output's own."""

    samples: Samples
    pairs: Pairs
    weights: Weights
    dy: Float[Tensor, "pairs out"]
    scale: Float[Tensor, " out"]
    along: Float[Tensor, "pairs out"]

    @classmethod
    def of(cls, samples: Samples, neighbors: int) -> "Case":
        """Find the pairs and what the labels predict along them."""
        pairs = near_pairs(samples.x, samples.y, neighbors)
        along = trapezoid(samples.jacobian, pairs)
        known = (along + pairs.dy).isfinite()
        size = pairs.dy.masked_fill(~known, 0.0).square().sum(0) / known.sum(0).clamp(min=1)
        scale = torch.where(size > 0, size.sqrt(), torch.inf)  # a constant output says nothing
        return cls(samples, pairs, Weights.of(pairs), pairs.dy / scale, scale, along / scale)

    @property
    def jacobian(self) -> Float[Tensor, "points out in"]:
        """The labels."""
        return self.samples.jacobian

    def fit(self, *parts: Float[Tensor, "pairs out"], dy: Tensor | None = None) -> Fit:
        """Regress the differences on parts of a prediction, where all is known."""
        return self.weights.fit(*_known(self.dy if dy is None else dy, torch.stack(parts)))

    def fit_outputs(self) -> Fit:
        """Regress the differences of each output on its own."""
        dy, along = _known(self.dy, self.along[None])
        return self.weights.fit_outputs(dy, along[0])

    def breadth(self) -> float:
        """Return how many points, were they alike, the predictions would come from."""
        squares = self.along.masked_fill(~self.along.isfinite(), 0.0).square().sum(1)
        shares = squares.new_zeros(len(self.samples))
        for ends in (self.pairs.first, self.pairs.second):
            shares.index_add_(0, ends, squares)
        return float(shares.sum().square() / shares.square().sum())

    def growth(self) -> "Growth":
        """Return how the prediction's errors grow with the distance."""
        dy, along = _known(self.dy, self.along[None])
        return Growth.of((dy - along[0]).square().mean(1), self)


@dataclass(frozen=True, slots=True)
class Growth:
    """How squared errors grow with the distance: the nearest quarter of pairs and the farthest.

    Right derivatives of a smooth function err with the third power of the distance (6), noisy ones
    and kinks with the first (2), noisy values with none (0).

    Args:
        power: The power of the distance.
        error: Its standard error.
        reach: Ratio of the distances of both quarters.
    """

    power: float
    error: float
    reach: float

    @classmethod
    def of(cls, squares: Float[Tensor, " pairs"], case: Case) -> "Growth":
        """Compare both quarters."""
        apart = case.pairs.dx.norm(dim=1)
        order = apart.argsort()
        quarter = max(1, len(order) // 4)

        def means(values: Tensor, where: Tensor) -> Tensor:
            own = case.weights.pairs[:, where]
            return (own @ values[where]) / own.sum(1)

        def growths(values: Tensor) -> Tensor:
            near = means(values, order[:quarter]).clamp(min=1e-300)
            return (means(values, order[-quarter:]).clamp(min=1e-300) / near).log()

        distance = growths(apart)
        powers = growths(squares) / distance.clamp(min=1e-12)
        return cls(float(powers[0]), float(powers[1:].std()), float(distance[0].exp()))


def _known(dy: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    unknown = ~(parts.sum(0) + dy).isfinite()
    return dy.masked_fill(unknown, 0.0), parts.masked_fill(unknown, 0.0)


def trapezoid(
    jacobian: Float[Tensor, "points out in"],
    pairs: Pairs,
    rows: Int[Tensor, " points"] | None = None,
) -> Float[Tensor, "pairs out"]:
    """Predict the change of the values; ``rows`` says whose Jacobian each point is given."""
    first = pairs.first if rows is None else rows[pairs.first]
    second = pairs.second if rows is None else rows[pairs.second]
    block = max(1, _CHUNK // max(1, jacobian[0].numel()))
    blocks = zip(*(torch.split(of, block) for of in (first, second, pairs.dx)), strict=True)
    found = [torch.einsum("pod,pd->po", jacobian[a] + jacobian[b], dx) for a, b, dx in blocks]
    return 0.5 * torch.cat(found)


def by_input(
    jacobian: Float[Tensor, "points out in"], pairs: Pairs
) -> Float[Tensor, "in pairs out"]:
    """Split the prediction into what each input says."""
    means = 0.5 * (jacobian[pairs.first] + jacobian[pairs.second])
    return (means * pairs.dx[:, None]).permute(2, 0, 1)
