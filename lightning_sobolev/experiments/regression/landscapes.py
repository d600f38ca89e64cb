r"""Classical test functions of optimisation with hand-written first and second derivatives.

Nothing here is differentiated automatically, so the formulas can serve as an independent target.
Where a derivative does not exist, the part of the function that has none counts as zero in it:
Ackley's cone at the origin, for Bukin N.6 the ridge :math:`y = x^2 / 100` and the line
:math:`x = -10`, for Eggholder the lines :math:`x / 2 + y + 47 = 0` and :math:`x = y + 47`, for
Cross-in-tray the lines on which a sine vanishes. Derivatives are unbounded near all of them but
Ackley's cone.

Source:
    Surjanovic and Bingham, Virtual Library of Simulation Experiments (the formulas); Czarnecki et
    al. 2017, Sobolev Training for Neural Networks (arXiv:1706.04859), appendix, for the domains as
    its re-implementations give them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.experiments.regression import _formulas as formulas
from lightning_sobolev.experiments.regression import _rugged as rugged

Formula = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Landscape:
    """A test function with its exact derivatives.

    Args:
        name: Its key in :data:`LANDSCAPES`.
        domain: Lowest and highest value of each input in two dimensions.
        dim: The number of inputs it is defined for; ``None`` for any from ``least_dim`` on.
        formulas: Value, gradient and Hessian.
        least_dim: The smallest number of inputs.
    """

    name: str
    domain: tuple[tuple[float, float], tuple[float, float]]
    dim: int | None
    formulas: tuple[Formula, Formula, Formula]
    least_dim: int = 1

    def bounds(self, dim: int = 2) -> tuple[tuple[float, float], ...]:
        """Return the domain in ``dim`` dimensions: the box in which points are drawn.

        Args:
            dim: Number of inputs.

        Returns:
            Lowest and highest value of each input.
        """
        self._check_dim(dim)
        return self.domain if self.dim is not None else (self.domain[0],) * dim

    def value(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Return the value at every row."""
        return self.formulas[0](self._checked(x))

    def gradient(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Return the gradient at every row."""
        return self.formulas[1](self._checked(x))

    def hessian(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d d"]:
        """Return the Hessian at every row."""
        return self.formulas[2](self._checked(x))

    def _checked(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or not x.is_floating_point():
            raise ValueError(
                f"x must be a floating-point tensor [batch, d], got {x.dtype} {list(x.shape)}"
            )
        self._check_dim(x.shape[1])
        return x

    def _check_dim(self, dim: int) -> None:
        if self.dim is not None and dim != self.dim:
            raise ValueError(f"dim must be {self.dim} for {self.name}, got {dim}")
        if dim < self.least_dim:
            raise ValueError(f"dim must be at least {self.least_dim} for {self.name}, got {dim}")


def landscape(name: str) -> Landscape:
    """Return the test function of that name.

    Args:
        name: A key of :data:`LANDSCAPES`.

    Returns:
        The function.

    Raises:
        ValueError: If there is none.
    """
    if name not in LANDSCAPES:
        raise ValueError(f"function must be one of {', '.join(LANDSCAPES)}, got {name!r}")
    return LANDSCAPES[name]


_SQUARE = ((-5.0, 5.0), (-5.0, 5.0))

LANDSCAPES: Mapping[str, Landscape] = {
    function.name: function
    for function in (
        Landscape(
            "ackley",
            _SQUARE,
            None,
            (formulas.ackley, formulas.ackley_gradient, formulas.ackley_hessian),
        ),
        Landscape(
            "beale",
            ((-4.5, 4.5), (-4.5, 4.5)),
            2,
            (formulas.beale, formulas.beale_gradient, formulas.beale_hessian),
        ),
        Landscape(
            "booth",
            ((-10.0, 10.0), (-10.0, 10.0)),
            2,
            (formulas.booth, formulas.booth_gradient, formulas.booth_hessian),
        ),
        Landscape(
            "bukin_n6",
            ((-15.0, -5.0), (-3.0, 3.0)),
            2,
            (formulas.bukin_n6, formulas.bukin_n6_gradient, formulas.bukin_n6_hessian),
        ),
        Landscape(
            "cross_in_tray",
            ((-10.0, 10.0), (-10.0, 10.0)),
            2,
            (
                rugged.cross_in_tray,
                rugged.cross_in_tray_gradient,
                rugged.cross_in_tray_hessian,
            ),
        ),
        Landscape(
            "eggholder",
            ((-512.0, 512.0), (-512.0, 512.0)),
            2,
            (rugged.eggholder, rugged.eggholder_gradient, rugged.eggholder_hessian),
        ),
        Landscape(
            "griewank",
            ((-600.0, 600.0), (-600.0, 600.0)),
            None,
            (rugged.griewank, rugged.griewank_gradient, rugged.griewank_hessian),
        ),
        Landscape(
            "mccormick",
            ((-1.5, 4.0), (-3.0, 4.0)),
            2,
            (formulas.mccormick, formulas.mccormick_gradient, formulas.mccormick_hessian),
        ),
        Landscape(
            "rosenbrock",
            ((-2.0, 2.0), (-2.0, 2.0)),
            None,
            (formulas.rosenbrock, formulas.rosenbrock_gradient, formulas.rosenbrock_hessian),
            least_dim=2,
        ),
        Landscape(
            "styblinski_tang",
            _SQUARE,
            None,
            (
                formulas.styblinski_tang,
                formulas.styblinski_tang_gradient,
                formulas.styblinski_tang_hessian,
            ),
        ),
    )
}
