r"""Directions with a stated covariance: in which directions of the input derivatives count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require


@dataclass(frozen=True, slots=True, eq=False)
class Covariance:
    r"""Normal directions v with covariance :math:`\Sigma = \mathrm{diag}(d) + F^\top F`.

    As the projection of a term of order 1 with tangents it weighs the Jacobians' difference
    :math:`\Delta` by where the inputs vary:

    .. math:: E|\Delta v|^2 = \mathrm{tr}(\Delta\, \Sigma\, \Delta^\top) ,

    to first order what matching values at :math:`x + v` adds to matching them at x: derivative
    matching is distillation with input noise of this covariance. With cotangents
    :math:`\Sigma` weighs the outputs. ``Covariance(torch.ones(n))`` is the ``"gaussian"``
    projection; other scales change what a weight means where a term is not normalized.

    Args:
        diagonal: d, ``[*rest]``, the shape of one input.
        factor: F, ``[rank, *rest]``; None for independent elements.

    Raises:
        ValueError: If d is negative or not finite, or the shape of F does not fit.

    Source:
        Srinivas and Fleuret 2018, Knowledge Transfer with Jacobian Matching (arXiv:1803.00443),
        where :math:`\Sigma = \sigma^2 I`; this covariance is ours.
    """

    diagonal: Float[Tensor, "*rest"]
    factor: Float[Tensor, "rank *rest"] | None = None

    def __post_init__(self) -> None:
        diagonal, factor = self.diagonal, self.factor
        if not bool((diagonal.isfinite() & (diagonal >= 0)).all()):
            raise ValueError(f"diagonal must be finite and >= 0, got {diagonal}")
        if factor is not None:
            fits, expected = factor.shape[1:] == diagonal.shape, list(diagonal.shape)
            require(fits, "factor", f"of shape [rank, *{expected}]", list(factor.shape))

    @classmethod
    def of(cls, rows: Float[Tensor, "rows *rest"], *, rank: int) -> "Covariance":
        r"""Return the covariance of data, and so that of differences of two data points, halved.

        F holds the ``rank`` leading principal components and d what they leave of each element's
        variance: the diagonal of :math:`\Sigma` is that of the sample covariance, and the whole is
        the sample covariance if ``rank`` is its rank. Cost: a singular value decomposition.

        Raises:
            ValueError: If there are fewer than two rows or ``rank`` is out of range.
        """
        require(len(rows) >= 2, "rows", "at least 2", len(rows))
        flat = rows.flatten(1)
        require(1 <= rank <= min(flat.shape), "rank", f"from 1 to {min(flat.shape)}", rank)
        centered = (flat - flat.mean(0)) / (len(rows) - 1) ** 0.5
        _, values, directions = torch.linalg.svd(centered, full_matrices=False)
        factor = values[:rank, None] * directions[:rank]
        left = (centered.square().sum(0) - factor.square().sum(0)).clamp_min(0.0)
        return cls(left.reshape(rows.shape[1:]), factor.reshape(rank, *rows.shape[1:]))

    def draw(
        self, shape: Sequence[int], *, num_projections: int, generator: torch.Generator,
        dtype: torch.dtype | None = None, device: torch.device | str | None = None,
    ) -> Float[Tensor, "proj batch *rest"]:  # fmt: skip
        """Return directions for every row of a batch, drawn on the generator's device.

        Raises:
            ValueError: If ``rest`` is not the shape of ``diagonal``.
        """
        fits, got = tuple(shape[1:]) == tuple(self.diagonal.shape), list(self.diagonal.shape)
        require(fits, "diagonal", f"of the shape of its directions, {list(shape[1:])}", got)
        root = self.diagonal.to(generator.device).sqrt()
        rows = (num_projections, shape[0])

        def normals(*rest: int) -> Tensor:
            place = {"generator": generator, "device": generator.device, "dtype": root.dtype}
            return torch.randn(*rows, *rest, **place)  # type: ignore[call-overload,no-any-return]

        drawn = root * normals(*shape[1:])
        if self.factor is not None:
            factor = self.factor.to(root)
            drawn = drawn + torch.tensordot(normals(len(factor)), factor, 1)
        return drawn.to(device=device or generator.device, dtype=dtype)
