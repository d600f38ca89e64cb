"""What an array of derivatives belongs to, and whether its shape says so."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivative:
    r"""What an array of derivatives in a file is.

    It has the shape ``[rows, *out, *in]``, and one ``*in`` more for each further input in ``wrt``.
    ``*out`` may be missing where there is a single output.

    Args:
        of: Name of the output in the batch. None: not in the batch, so ``*out`` is not checked.
        wrt: Name of the input in the batch, or of several one after another:
            ``("x", "x")`` is a Hessian.
        transposed: Whether the file has ``[rows, *in, *out]``, as :math:`J^\top` products have.
            No shape tells where ``*in`` and ``*out`` are the same.
        scale: What the numbers are multiplied with: -1 makes the gradient of an energy of forces.

    Raises:
        ValueError: If ``wrt`` is empty, or ``scale`` zero or not finite.
    """

    of: str | None = "y"
    wrt: str | tuple[str, ...] = "x"
    transposed: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.wrt), "wrt", "the name of at least one input", self.wrt)
        is_factor = self.scale != 0 and abs(self.scale) < float("inf")
        require(is_factor, "scale", "finite and not zero", self.scale)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return (self.wrt,) if isinstance(self.wrt, str) else self.wrt

    def converted(self, array: Float[Tensor, "rows *axes"], in_ndim: int) -> Tensor:
        """Return ``[rows, *out, *in]`` of what the file has; ``*in`` are ``in_ndim`` axes."""
        if self.transposed:
            inner = list(range(1, 1 + in_ndim))
            array = array.movedim(inner, list(range(array.ndim - in_ndim, array.ndim)))
        return array if self.scale == 1.0 else array * self.scale


STANDARD = {"jacobian": Derivative(), "hessian": Derivative(wrt=("x", "x"))}
"""What arrays of these names are where nothing else is said."""


def with_standard(
    given: Mapping[str, Derivative] | None, names: Mapping[str, str]
) -> dict[str, Derivative]:
    """Return what every array of derivatives belongs to.

    Raises:
        ValueError: If one of the names it belongs to is not in the batch.
    """
    found = {name: standard for name, standard in STANDARD.items() if name in names}
    if "y" not in names:  # derivatives alone
        found = {name: replace(standard, of=None) for name, standard in found.items()}
    found |= given or {}
    for name, derivative in found.items():
        needed = [name, *derivative.inputs, *([derivative.of] if derivative.of else [])]
        if missing := [needs for needs in needed if needs not in names]:
            raise ValueError(
                f"keys must name {missing} for derivatives[{name!r}] = {derivative}, "
                f"got {list(names)}"
            )
    return found


def check_shape(
    name: str, where: str, derivative: Derivative, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise unless an array of derivatives has the shape that its output and inputs give it.

    Raises:
        ValueError: If it has not; says so where it is the transposed one.
    """
    out = None if derivative.of is None else shapes[derivative.of][1:]
    inner = tuple(size for wrt in derivative.inputs for size in shapes[wrt][1:])
    got = shapes[name][1:]
    if _fits(got, out, inner, derivative.transposed):
        return
    sides = [_axes("*out", out), f"*in = {list(inner)}"]
    expected = ", ".join(reversed(sides) if derivative.transposed else sides)
    hint = ""
    if _fits(got, out, inner, not derivative.transposed):
        other = replace(derivative, transposed=not derivative.transposed)
        hint = f", which is transposed: say derivatives={{{name!r}: {other}}}"
    raise ValueError(
        f"{where} must have the shape [rows, {expected}] for {name!r}, "
        f"got {list(shapes[name])}{hint}"
    )


def _axes(name: str, sizes: tuple[int, ...] | None) -> str:
    return name if sizes is None else f"{name} = {list(sizes)}"


def _fits(
    got: tuple[int, ...], out: tuple[int, ...] | None, inner: tuple[int, ...], transposed: bool
) -> bool:
    split = len(inner) if transposed else len(got) - len(inner)
    if not 0 <= split <= len(got):
        return False
    outer, tail = (got[split:], got[:split]) if transposed else (got[:split], got[split:])
    is_single = out is not None and torch.Size(out).numel() == torch.Size(outer).numel() == 1
    return tail == inner and (out is None or outer == out or is_single)
