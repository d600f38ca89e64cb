r"""Classical test functions of optimization with hand-written first and second derivatives.

Nothing here is differentiated automatically, so the formulas can serve as an independent target.
Where a derivative does not exist, the part of the function that has none counts as zero in it; the
formulas say where. Derivatives are unbounded near all of these places but Ackley's cone.

Source:
    Surjanovic and Bingham, Virtual Library of Simulation Experiments (the formulas); Czarnecki et
    al. 2017, Sobolev Training for Neural Networks (arXiv:1706.04859), appendix, for the domains as
    its re-implementations give them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.experiments.regression import _formulas as smooth
from lightning_sobolev.experiments.regression import _rugged as rugged


@dataclass(frozen=True, slots=True)
class Landscape:
    """A test function with its exact derivatives."""

    name: str
    formulas: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    domain: tuple[tuple[float, float], tuple[float, float]]  # of each input in two dimensions
    dim: int | None = None  # None: any from ``least_dim`` on
    least_dim: int = 1

    def bounds(self, dim: int = 2) -> tuple[tuple[float, float], ...]:
        """Return the domain in ``dim`` dimensions: the box in which points are drawn."""
        self._check_dim(dim)
        return self.domain if self.dim is not None else (self.domain[0],) * dim

    def value(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Return the value at every row."""
        return self.derivatives(x)[0]

    def derivatives(self, x: Float[Tensor, "batch d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return value, gradient and Hessian at every row."""
        if x.dim() != 2 or not x.is_floating_point():
            got = f"{x.dtype} {list(x.shape)}"
            raise ValueError(f"x must be a floating-point tensor [batch, d], got {got}")
        self._check_dim(x.shape[1])
        return self.formulas(x)

    def _check_dim(self, dim: int) -> None:
        if self.dim is not None and dim != self.dim:
            raise ValueError(f"dim must be {self.dim} for {self.name}, got {dim}")
        if dim < self.least_dim:
            raise ValueError(f"dim must be at least {self.least_dim} for {self.name}, got {dim}")


def landscape(name: str) -> Landscape:
    """Return the test function of that name."""
    if name not in LANDSCAPES:
        raise ValueError(f"function must be one of {', '.join(LANDSCAPES)}, got {name!r}")
    return LANDSCAPES[name]


LANDSCAPES: Mapping[str, Landscape] = {
    function.name: function
    for function in (
        Landscape("ackley", smooth.ackley, ((-5.0, 5.0),) * 2),
        Landscape("beale", smooth.beale, ((-4.5, 4.5),) * 2, dim=2),
        Landscape("booth", smooth.booth, ((-10.0, 10.0),) * 2, dim=2),
        Landscape("bukin_n6", smooth.bukin_n6, ((-15.0, -5.0), (-3.0, 3.0)), dim=2),
        Landscape("cross_in_tray", rugged.cross_in_tray, ((-10.0, 10.0),) * 2, dim=2),
        Landscape("eggholder", rugged.eggholder, ((-512.0, 512.0),) * 2, dim=2),
        Landscape("griewank", rugged.griewank, ((-600.0, 600.0),) * 2),
        Landscape("mccormick", smooth.mccormick, ((-1.5, 4.0), (-3.0, 4.0)), dim=2),
        Landscape("rosenbrock", smooth.rosenbrock, ((-2.0, 2.0),) * 2, least_dim=2),
        Landscape("styblinski_tang", smooth.styblinski_tang, ((-5.0, 5.0),) * 2),
    )
}
