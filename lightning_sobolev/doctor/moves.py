r"""How linear a live teacher is over real moves: what its derivatives say of them.

A move leads from a state x to another one, x'. The teacher's answers differ by :math:`\Delta f`,
and its derivatives predict :math:`J \Delta x` of that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn, Jet, Query, Teacher
from lightning_sobolev.doctor.asking import leaving_as_it_was
from lightning_sobolev.doctor.scores import ratio_error, score
from lightning_sobolev.observe.remedies import Remedies
from lightning_sobolev.spec import SobolevSpec
from lightning_sobolev.teachers.network import as_teacher

OutputMap = str | BatchFn
"""A function of the output, or the name of one: identity, log_softmax, softmax."""

_CHUNK = 2**20
"""Most numbers of the inputs that are asked about at once."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What the derivatives of a teacher say of the change of its values over moves.

    1 is all of the change, 0 none; below, predicting no change would be better.

    Args:
        first_order: What the derivative at the first state says.
        both_ends: What the derivatives at both states say together.
        error: Standard error of ``first_order`` over the moves, as if they were independent.
    """

    first_order: float
    both_ends: float
    error: float


class NothingToExplain(ValueError):
    """No state moved, or the teacher answers the same at both ends of every move."""


def explained(
    teacher: Teacher | nn.Module,
    x: Float[Tensor, "batch *in"],
    moved: Float[Tensor, "batch *in"],
    on: OutputMap = "identity",
) -> Explained:
    r"""Compare the changes of a teacher's values over moves with what its derivatives say of them.

    .. math::
        F = 1 - \frac{\sum |\Delta f - J(x)\,\Delta x|^2}{\sum |\Delta f|^2}, \qquad
        T = 1 - \frac{\sum |\Delta f - \tfrac12 (J(x) + J(x'))\,\Delta x|^2}{\sum |\Delta f|^2}

    over rows, with :math:`\Delta x = x' - x`. F is 1 for linear teachers, T for quadratic ones, too
    (the trapezoid rule). Sums are in float64. Rows that did not move are left out.

    The teacher is left as it was: its networks' buffers, and modes and ``requires_grad`` of a bare
    module.

    Cost: at both ends one forward pass, one backward pass and one more, in blocks of rows.

    Assumes that row b of the answer depends on row b of ``x`` alone. The outputs are summed as they
    are: one that is much larger than the others decides.

    Args:
        teacher: Answers at any points; a module is taken as a frozen network in eval mode.
        x: The states.
        moved: Where each of them moves.
        on: Output map or its name, as ``SobolevSpec`` takes it; the changes are those of
            ``on(teacher)``.

    Returns:
        Both scores and the error of the first.

    Raises:
        ValueError: If shapes or types do not fit, the teacher answers at stored points alone, or a
            number is not finite.
        NothingToExplain: If no state moved, or the teacher's values are the same at both ends.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> found = explained(torch.nn.Tanh(), x, x + 0.5)
        >>> print(f"{found.first_order:.3f} {found.both_ends:.5f}")
        0.975 0.99879
    """
    check_points("x", x)
    check_points("moved", moved, x)
    rows = (x != moved).flatten(1).any(1)
    if not bool(rows.any()):
        raise NothingToExplain("moved must differ from x in one row at least, got none that does")
    x, moved = x[rows], moved[rows]
    with answering(teacher, x.device) as asked:
        parts = [_block(asked, on, *block) for block in blocks(x, moved)]
    change, ahead, back = (torch.cat(each) for each in zip(*parts, strict=True))
    if not bool(change.any()):
        raise NothingToExplain(
            f"teacher must answer differently somewhere, got the same over all of {len(x)} moves"
        )
    both = (ahead + back) / 2
    return Explained(score(change, ahead), score(change, both), ratio_error(change, ahead))


@contextmanager
def answering(teacher: Teacher | nn.Module, device: torch.device) -> Iterator[Teacher]:
    """Let a live teacher be asked for derivatives on a device, and leave it as it was.

    Raises:
        ValueError: If it is neither teacher nor module, or answers at stored points alone.
    """
    modules = list(teacher.modules()) if isinstance(teacher, nn.Module) else []
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    modes = [module.training for module in modules]
    needed = [parameter.requires_grad for parameter in parameters]
    asked = as_teacher(teacher)
    try:
        expected = "one that answers at any points"
        require(not asked.is_stored, "teacher", expected, f"a {type(asked).__name__}")
        # A product with J by reverse mode is a second derivative: fused kernels have none.
        remedies, cast = Remedies(recurrent=True), torch.autocast(device.type, enabled=False)
        with leaving_as_it_was(asked), remedies, torch.enable_grad(), cast:
            yield asked
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, need in zip(parameters, needed, strict=True):
            parameter.requires_grad_(need)


def blocks(*points: Float[Tensor, "batch *in"]) -> Iterator[tuple[Tensor, ...]]:
    """Cut several sets of points alike into blocks of rows that fit into little memory."""
    size = max(1, _CHUNK // points[0][0].numel())
    return zip(*(torch.split(each, size) for each in points), strict=True)


def jet_at(teacher: Teacher, x: Float[Tensor, "batch *in"], on: OutputMap) -> Jet:
    """Return the jet of ``on(teacher)`` where nothing but the points is known.

    Raises:
        ValueError: If it does not answer with a row for each.
    """
    jet = teacher.at(Query(x, SobolevSpec(on=on).output_map, alone=True))
    shape = list(jet.value.shape)
    require(shape[:1] == [len(x)], "teacher", f"one that answers [{len(x)}, *out]", shape)
    return jet


def check_points(name: str, given: Tensor, like: Tensor | None = None) -> None:
    """Refuse points that no teacher can be asked about, or that are not like others.

    Raises:
        ValueError: If they are no finite floating-point numbers ``[batch, *in]``, or not of the
            shape and type of ``like``.
    """
    got = f"{given.dtype} {list(given.shape)}"
    fits = given.is_floating_point() and given.ndim >= 2 and given.numel() > 0
    require(fits, name, "floating-point numbers [batch, *in]", got)
    require(bool(given.isfinite().all()), name, "finite", "NaN or Inf")
    if like is not None:
        fits = given.shape == like.shape and given.dtype == like.dtype
        require(fits, name, f"{like.dtype} {list(like.shape)} as x is", got)


def check_finite(*answers: Tensor) -> None:
    """Refuse what a teacher answers unless all of it is finite.

    Raises:
        ValueError: If a number is not.
    """
    is_finite = all(bool(answer.isfinite().all()) for answer in answers)
    require(is_finite, "teacher", "finite in value and derivative", "NaN or Inf")


def _block(teacher: Teacher, on: OutputMap, x: Tensor, moved: Tensor) -> tuple[Tensor, ...]:
    """Return the change and what the derivatives at both ends say of it, ``[rows, out]`` each."""
    way = (moved - x)[None]
    before, ahead = _answer(teacher, x, way, on)
    after, back = _answer(teacher, moved, way, on)
    return after - before, ahead, back


def _answer(teacher: Teacher, x: Tensor, way: Tensor, on: OutputMap) -> tuple[Tensor, Tensor]:
    jet = jet_at(teacher, x, on)
    value, along = (
        each.detach().double().reshape(len(x), -1) for each in (jet.value, jet.jvp(way)[0])
    )
    check_finite(value, along)
    return value, along
