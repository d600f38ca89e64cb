"""Mathematics in pure functions: tensors in, tensors out, no state and no hidden randomness."""

from lightning_sobolev.functional.band_limits import low_pass
from lightning_sobolev.functional.covariance import Covariance
from lightning_sobolev.functional.derivatives import (
    FuncJet,
    TapeJet,
    hessian,
    hvp,
    jacobian,
    tape_jet,
    value_and_jvp,
    value_and_vjp,
)
from lightning_sobolev.functional.discrepancies import (
    DISCREPANCIES,
    POLICY_LOSSES,
    cosine,
    cross_entropy,
    huber,
    kl,
    l1,
    reverse_kl,
    squared,
)
from lightning_sobolev.functional.estimates import (
    Estimate,
    central_differences,
    neighbor_derivatives,
)
from lightning_sobolev.functional.fisher import fisher
from lightning_sobolev.functional.mixed import mixed_derivatives
from lightning_sobolev.functional.norms import TimeSpaceNorm
from lightning_sobolev.functional.projections import PROJECTIONS, counter_draw, draw, generator_for
from lightning_sobolev.functional.quadrature import Quadrature, gauss_legendre, monte_carlo

__all__ = [
    "DISCREPANCIES", "POLICY_LOSSES", "PROJECTIONS", "Covariance", "Estimate", "FuncJet",
    "Quadrature", "TapeJet", "TimeSpaceNorm", "central_differences", "cosine", "counter_draw",
    "cross_entropy", "draw", "fisher", "gauss_legendre", "generator_for", "hessian", "huber",
    "hvp", "jacobian", "kl", "l1", "low_pass", "mixed_derivatives", "monte_carlo",
    "neighbor_derivatives", "reverse_kl", "squared", "tape_jet", "value_and_jvp",
    "value_and_vjp",
]  # fmt: skip
