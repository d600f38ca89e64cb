r"""Derivatives of functions that have none to give: by differences, or from neighbouring points."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.functional.derivatives import basis_of


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated derivatives and their absolute errors: an order of magnitude, no bound."""

    derivative: Tensor
    error: Tensor
    evaluations: int  # points at which the function was evaluated


def central_differences(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *in"], tangents: Float[Tensor, "proj batch *in"] | None = None, *,
    noise: float | None = None, scale: Float[Tensor, "*in"] | float | None = None,
) -> Estimate:  # fmt: skip
    r"""Estimate derivatives of a simulator by central differences.

    The derivative along v is :math:`D(h) = (f(x + h v) - f(x - h v)) / 2h`, off by
    :math:`h^2 f''' / 6` and by the noise of f divided by h. The step that balances them is
    :math:`h = \text{noise}^{1/3}` in units of ``scale``. The stated error is Richardson's
    :math:`|D(h) - D(2h)| / 3` for the first, plus :math:`\text{noise}\,|f| / h` for the second.

    Costs four evaluations for each direction and row; ``fn`` is called four times a direction.

    Args:
        fn: Maps ``[batch, *in]`` to ``[batch, *out]``, row by row. Needs no gradient.
        x: Points; float64 leaves most digits.
        tangents: Directions. None: every input in turn, for the full Jacobian.
        noise: Relative precision of ``fn``: the tolerance of a solver, say. None: that of the type
            of ``x``.
        scale: Length over which ``fn`` changes, for every input. None: the deviation of ``x`` over
            the rows; for an input that does not vary its size, at least 1.

    Returns:
        For ``tangents`` the derivatives along them, ``[proj, batch, *out]``; else the Jacobian,
        ``[batch, *out, *in]``.

    Raises:
        ValueError: If ``noise`` is not in (0, 1), ``scale`` not positive, or a shape wrong.
    """
    noise = torch.finfo(x.dtype).eps if noise is None else noise
    require(0.0 < noise < 1.0, "noise", "in (0, 1)", noise)
    x = x.detach()
    directions = basis_of(x) if tangents is None else tangents.to(x)
    if directions.shape[1:] != x.shape:
        raise ValueError(
            f"tangents must have shape [proj, {', '.join(map(str, x.shape))}], "
            f"got {list(directions.shape)}"
        )
    lengths = _lengths(x, scale)
    pairs = [_along(fn, x, v, lengths, noise) for v in directions]
    derivative, error = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    if tangents is None:
        shape = (*derivative.shape[1:], *x.shape[1:])
        derivative, error = (e.movedim(0, -1).reshape(shape) for e in (derivative, error))
    return Estimate(derivative, error, 4 * len(directions) * len(x))


def _along(
    fn: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, lengths: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    reach = (v.abs() / lengths).reshape(len(x), -1).amax(1)
    # A direction of length zero has derivative zero, with any step.
    step = noise ** (1 / 3) / torch.where(reach > 0, reach, 1.0)
    row = step.reshape(-1, *[1] * (x.ndim - 1))
    with torch.no_grad():
        ends = [fn(x + factor * row * v) for factor in (1.0, -1.0, 2.0, -2.0)]
    h = step.reshape(-1, *[1] * (ends[0].ndim - 1))
    near, far = (ends[0] - ends[1]) / (2 * h), (ends[2] - ends[3]) / (4 * h)
    rounding = noise * torch.maximum(ends[0].abs(), ends[1].abs()) / h
    return near, (near - far).abs() / 3 + rounding


def _lengths(x: Tensor, scale: Tensor | float | None) -> Tensor:
    if scale is not None:
        given = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
        require(bool((given > 0).all()), "scale", "positive", scale)
        return given.expand(x.shape[1:])
    deviation, largest = x.std(0, correction=0), x.abs().amax(0)
    varies = deviation > 8 * torch.finfo(x.dtype).eps * largest
    return torch.where(varies, deviation, largest.clamp_min(1.0))


def neighbor_derivatives(
    x: Float[Tensor, "rows *in"], y: Float[Tensor, "rows *out"], *,
    degree: int = 1, num_neighbors: int | None = None, chunk: int = 256,
) -> Estimate:  # fmt: skip
    r"""Estimate the Jacobian at every point of a data set from its nearest neighbours.

    Around each point a polynomial through the point itself is fitted to its neighbours by least
    squares with weights :math:`e^{-d / \bar d}`, where d is the distance in deviations of x and
    :math:`\bar d` its mean. The error falls like the distance for ``degree=1`` and like its square
    for ``degree=2``. The stated error is the standard error of the fit: it sees how badly the
    polynomial fits, and noise of y, not what lies between the points.

    Costs a distance to every other row and one small least-squares problem for each row.

    Args:
        x: Points.
        y: Values there.
        degree: 1 for planes, 2 with second-order terms.
        num_neighbors: Neighbours of each point; None takes twice the number of coefficients.
        chunk: Rows that are worked on at once; bounds the memory.

    Returns:
        The Jacobian, ``[rows, *out, *in]``; NaN ("not known") where the neighbours do not span
        the space.

    Raises:
        ValueError: If ``degree`` is not 1 or 2, or there are not enough rows.

    Source:
        Kissel and Diepold 2019, Sobolev Training with Approximated Derivatives for Black-Box
        Function Regression with Neural Networks (degree 1, four neighbours in two dimensions).
    """
    require(degree in (1, 2), "degree", "1 or 2", degree)
    dim = x.shape[1:].numel()
    unknowns = dim if degree == 1 else dim + dim * (dim + 1) // 2
    count = 2 * unknowns if num_neighbors is None else num_neighbors
    if not unknowns < count < len(x):
        raise ValueError(
            f"num_neighbors must be above the {unknowns} coefficients and below the {len(x)} rows, "
            f"got {count}"
        )
    flat = x.detach().reshape(len(x), -1).double()
    spread = flat.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    points, values = flat / spread, y.detach().reshape(len(y), -1).double()
    chunks = [slice(start, start + chunk) for start in range(0, len(x), chunk)]
    parts = [_fit_around(points, values, rows, count, degree) for rows in chunks]
    shape = (len(x), *y.shape[1:], *x.shape[1:])
    slopes, errors = (torch.cat(each) / spread for each in zip(*parts, strict=True))
    return Estimate(slopes.reshape(shape).to(y), errors.reshape(shape).to(y), 0)


def _fit_around(
    points: Tensor, values: Tensor, rows: slice, count: int, degree: int
) -> tuple[Tensor, Tensor]:
    # Slopes and standard errors ``[rows, out, in]`` in units of ``points``.
    dim = points.shape[1]
    distances = torch.cdist(points[rows], points)
    own = torch.arange(len(points), device=points.device)[rows]
    distances[torch.arange(len(own), device=own.device), own] = math.inf  # a point is not its own
    distance, nearest = distances.topk(count, largest=False)
    moves = points[nearest] - points[rows, None]
    mean = distance.mean(1, keepdim=True).clamp_min(torch.finfo(distance.dtype).tiny)
    root = torch.exp(-distance / mean / 2)[..., None]  # [rows, neighbors, 1]
    terms = moves / mean[..., None]  # of size one: the rank is then a matter of directions
    if degree == 2:
        i, j = torch.triu_indices(dim, dim, device=points.device)
        terms = torch.cat([terms, terms[..., i] * terms[..., j]], -1)
    rises = values[nearest] - values[rows, None]
    inverse = torch.linalg.pinv(root * terms, rtol=1e-9)  # [rows, unknowns, neighbors]
    rank = torch.linalg.matrix_rank(root * terms, rtol=1e-9)
    solution = inverse @ (root * rises)  # [rows, unknowns, out]
    residual = root * (rises - terms @ solution)
    variance = residual.square().sum(1) / (count - terms.shape[-1])  # [rows, out]
    spread = inverse.square().sum(-1)  # [rows, unknowns]
    errors = (variance[..., None] * spread[:, None, :dim]).sqrt() / mean[..., None]
    slopes = solution[:, :dim].transpose(1, 2) / mean[..., None]
    known = (rank == terms.shape[-1])[:, None, None]
    return slopes.where(known, torch.nan), errors.where(known, torch.nan)
