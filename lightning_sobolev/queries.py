"""Rows of a batch that become points where a live teacher is asked for its values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int, Shaped
from torch import Generator, Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev._types import Query, Teacher
from lightning_sobolev.points import Points, PointsFn, points_at

Answer = Callable[[Tensor], Tensor] | Teacher
"""A function or module that maps inputs to targets, or a teacher."""


def with_queries(
    x: Shaped[Tensor, "batch *in"], y: Shaped[Tensor, "batch *out"], answer: Answer,
    points: Points | PointsFn, generator: Generator, step: int = 0,
) -> tuple[Shaped[Tensor, "batch *in"], Shaped[Tensor, "batch *out"]]:  # fmt: skip
    """Replace rows of a batch by points that are made of it, and their targets by answers there.

    The batch stays as large as it was: the student pays nothing for it, the teacher a forward pass
    of the rows that moved. A term of order 1 that observes the student's call is then evaluated at
    these rows too. A term of order 0 with ``points`` keeps all stored rows and has the student
    evaluate the points beside them.

    Assumes that row b of the answer depends on row b of its input alone: nodes of one graph are no
    rows, and batch norm is asked in eval mode.

    Derivatives that are stored with the batch are those at its stored rows; at these points only a
    teacher that answers anywhere knows them.

    Args:
        x: Inputs of any type, bytes too, as the data have them: without a graph.
        y: Their targets.
        answer: The live teacher: maps inputs like ``x`` to targets like ``y``, row by row. It is
            called outside autocast and without recording a graph; one that differentiates on its
            way says ``torch.enable_grad()`` itself. A module is in eval mode meanwhile.
        points: Which rows are replaced, and by what: :class:`~lightning_sobolev.Recombine` or
            another kind with a ``share``, or a function of inputs and generator.
        generator: All randomness; seed it by what a resumed run knows (epoch and batch, say).
        step: Global step, for schedules of the share.

    Returns:
        Inputs and targets, new tensors where a row moved.

    Raises:
        ValueError: If x and y are not tensors of as many rows, x has a graph, or the points or the
            answers have not the shape, or a type, of what they replace.

    Example:
        >>> from lightning_sobolev import Recombine
        >>> x = torch.arange(8.0).reshape(4, 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = with_queries(x, x.sum(1), lambda x: x.sum(1), Recombine(0.5), generator)
        >>> bool((y == x.sum(1)).all())
        True
    """
    _check(x, y)
    made = points_at(points, x, generator, lambda: step)
    moved = _moved(made, x)
    if len(moved) == 0:
        return x, y
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), _in_eval_mode(answer):
        answers = _asked(answer, made[moved])
    shape = (len(moved), *y.shape[1:])
    fits = isinstance(answers, Tensor) and answers.shape == shape
    fits = fits and torch.can_cast(answers.dtype, y.dtype)
    got = _described(answers)
    require(fits, "answer", f"one that returns {list(shape)} of a type that {y.dtype} holds", got)
    return made.requires_grad_(x.requires_grad), y.index_copy(0, moved, answers.detach().to(y))


def _check(x: Tensor, y: Tensor) -> None:
    for name, each in (("x", x), ("y", y)):
        fits = isinstance(each, Tensor) and each.ndim > 0
        require(fits, name, "a tensor [batch, ...]", _described(each))
    require(x.grad_fn is None, "x", "the data's own inputs, without a graph", "one with a graph")
    require(len(x) == len(y), "y", f"a tensor of {len(x)} rows as x is", list(y.shape))


def _moved(made: Tensor, x: Tensor) -> Int[Tensor, " rows"]:
    differs = made != x
    if x.is_floating_point() or x.is_complex():
        differs &= ~(made.isnan() & x.isnan())  # a missing number that is still missing
    rows = differs.flatten(1).any(1) if x.ndim > 1 else differs
    return rows.nonzero().squeeze(1)


def _asked(answer: Answer, x: Tensor) -> Tensor:
    if not isinstance(answer, Teacher):
        return answer(x)
    name = type(answer).__name__
    require(not answer.is_stored, "answer", "a teacher that answers at any points", name)
    return answer.at(Query(x, alone=True)).value


@contextmanager
def _in_eval_mode(answer: Answer) -> Iterator[None]:
    modules = answer.modules() if isinstance(answer, nn.Module) else ()
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _described(given: object) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    return f"{list(given.shape)} {given.dtype}"
