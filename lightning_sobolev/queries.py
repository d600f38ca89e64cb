"""Rows of a batch that become points where a live teacher is asked for its values."""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Generator, Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.points import Points, PointsFn, points_at


def with_queries(
    x: Shaped[Tensor, "batch *in"], y: Shaped[Tensor, "batch *out"],
    answer: Callable[[Tensor], Tensor], points: Points | PointsFn, generator: Generator,
    step: int = 0,
) -> tuple[Shaped[Tensor, "batch *in"], Shaped[Tensor, "batch *out"]]:  # fmt: skip
    """Replace rows of a batch by points that are made of it, and their targets by answers there.

    The batch stays as large as it was: the student pays nothing for it, the teacher a forward pass
    of the rows that moved. A term of order 1 that observes the student's call is then evaluated at
    these rows too. A term of order 0 with ``points`` keeps all stored rows and has the student
    evaluate the points beside them.

    Args:
        x: Inputs of any type, bytes too.
        y: Their targets.
        answer: The live teacher: maps inputs like ``x`` to targets like ``y``, row by row; it is
            called without recording a graph.
        points: Which rows are replaced, and by what: :class:`~lightning_sobolev.Recombine` or
            another kind with a ``share``, or a function of inputs and generator.
        generator: All randomness; seed it by what a resumed run knows (epoch and batch, say).
        step: Global step, for schedules of the share.

    Returns:
        Inputs and targets, new tensors where a row moved.

    Raises:
        ValueError: If the points or the answers do not have the shape of what they replace.

    Example:
        >>> from lightning_sobolev import Recombine
        >>> x = torch.arange(8.0).reshape(4, 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = with_queries(x, x.sum(1), lambda x: x.sum(1), Recombine(0.5), generator)
        >>> bool((y == x.sum(1)).all())
        True
    """
    made = points_at(points, x, generator, lambda: step)
    moved = (made != x).flatten(1).any(1).nonzero().squeeze(1)
    if len(moved) == 0:
        return x, y
    with torch.no_grad():
        answers = answer(made[moved])
    expected = f"one that returns {[len(moved), *y.shape[1:]]}"
    require(answers.shape == y[moved].shape, "answer", expected, list(answers.shape))
    return made, y.index_copy(0, moved, answers.detach().to(y))
