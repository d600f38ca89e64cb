"""Several teachers, of which each row of the batch names one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import (
    Directions,
    InRows,
    Jet,
    OutRows,
    Query,
    StudentCall,
    Teacher,
    Values,
)
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.arrays import taken
from lightning_sobolev.teachers.network import as_teacher

_NAME = "TeacherChoice"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one teacher answered for its rows; NaN is an answer where ``allows_unknown``."""

    rows: Int[Tensor, " own"]
    jet: Jet
    allows_unknown: bool

    def checked(self, answer: Tensor) -> Tensor:
        """Return an answer in which NaN means "not known": elsewhere it is an error, as Inf is."""
        if self.allows_unknown:
            return answer
        return torch.where(answer.isnan(), torch.inf, answer)


class ChosenJet:
    """A jet whose rows come from several ones; NaN where they come from none.

    Args:
        parts: At least one. Together they hold no row twice.
        unknown: Rows whose answer is not known, whatever the parts say; None if there is none.
        size: Number of rows.
    """

    def __init__(
        self, parts: Sequence[Part], unknown: Int[Tensor, " none"] | None, size: int
    ) -> None:
        self._parts, self._unknown, self._size = parts, unknown, size

    @property
    def value(self) -> Values:
        """The chosen values."""
        return self._put_together(lambda part: part.jet.value, 0)

    def vjp(self, cotangents: OutRows) -> InRows:
        """Pull the cotangents of each row back through its teacher."""
        return self._put_together(lambda part: part.jet.vjp(cotangents[:, part.rows]), 1)

    def jvp(self, tangents: InRows) -> OutRows:
        """Push the tangents of each row through its teacher."""
        return self._put_together(lambda part: part.jet.jvp(tangents[:, part.rows]), 1)

    def hvp(self, cotangents: OutRows, tangents: InRows) -> InRows:
        """Apply the Hessian of each row's teacher."""
        return self._put_together(
            lambda part: part.jet.hvp(cotangents[:, part.rows], tangents[:, part.rows]), 1
        )

    def _put_together(self, ask: Callable[[Part], Tensor], axis: int) -> Float[Tensor, "*leading"]:
        answers = [part.checked(ask(part)) for part in self._parts]
        rest = [list(answer.shape[axis + 1 :]) for answer in answers]
        if any(shape != rest[0] for shape in rest):
            raise ValueError(f"teachers must answer in one shape, got rows of {rest}")
        first = answers[0]
        whole = first.new_full((*first.shape[:axis], self._size, *rest[0]), torch.nan)
        for part, answer in zip(self._parts, answers, strict=True):
            whole.index_copy_(axis, part.rows, answer.to(whole))
        if self._unknown is not None:
            whole.index_fill_(axis, self._unknown, torch.nan)
        return whole


class TeacherChoice(Teacher):
    """Several teachers, one for each row: experts of terrains, tasks or games.

    The batch holds the number of each row's teacher, counted from 0; -1 means none, and nothing is
    matched there. A teacher is asked about its own rows alone.

    Cost: that of one teacher over the batch, in as many parts as teachers have rows. The numbers
    are read, which waits for an accelerator. Teachers with directions of their own
    (:class:`~lightning_sobolev.DirectionalTeacher`, :class:`~lightning_sobolev.CachedTeacher`) are
    refused, and networks that are called as the student was where that takes other arguments than
    the observed input: those are not cut to rows; use ``NetworkTeacher(..., inputs=...)``.

    Args:
        teachers: Who may be chosen; modules are wrapped in a
            :class:`~lightning_sobolev.NetworkTeacher`.
        index: Key path of the integers ``[batch]`` in the batch.

    Attributes:
        teachers: Who may be chosen.
        default_term: That of the teachers; None where they differ.

    Raises:
        ValueError: If there is no teacher, or one is none.

    Example:
        >>> walk, climb = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> x, expert = torch.ones(4, 3), torch.tensor([0, 1, 1, -1])
        >>> teacher = TeacherChoice([walk, climb], index="terrain")
        >>> teacher.at(Query(x, batch={"x": x, "terrain": expert})).value.isnan().any(1)
        tensor([False, False, False,  True])
    """

    allows_unknown = True

    def __init__(
        self, teachers: Sequence[Teacher | nn.Module], index: str | int = "teacher"
    ) -> None:
        is_several = isinstance(teachers, Sequence | nn.ModuleList) and len(teachers) > 0
        require(is_several, "teachers", "a sequence of one or more", teachers)
        named = enumerate(teachers)
        self.teachers = tuple(as_teacher(one, f"teachers[{number}]") for number, one in named)
        self.networks = tuple(network for one in self.teachers for network in one.networks)
        first, *others = [one.default_term for one in self.teachers]
        self.default_term = first if all(other == first for other in others) else None
        self._path = _paths.parse(index, "index")

    def check_apart(self, module: nn.Module, target: str | None) -> None:
        """Refuse a student that is one of the teachers."""
        for one in self.teachers:
            one.check_apart(module, target)

    def at(self, query: Query) -> Jet:
        """Return the jet whose rows are those of the chosen teachers.

        Raises:
            ValueError: If rows of the input belong to groups, or the index is none.
        """
        require(query.groups is None, "groups", f"None with a {_NAME}", "nodes of graphs")
        numbers, x = self._numbers(query), query.x
        chosen = [(one, numbers == number) for number, one in enumerate(self.teachers)]
        asked = [(one, mask.nonzero()[:, 0].to(x.device)) for one, mask in chosen if mask.any()]
        if not asked:  # somebody must say in which shape nothing is known
            asked = [(self.teachers[0], torch.arange(min(1, len(x)), device=x.device))]
        parts = [Part(r, one.at(_part_of(query, r)), one.allows_unknown) for one, r in asked]
        none = (numbers < 0).nonzero()[:, 0].to(x.device)
        return ChosenJet(parts, none if len(none) else None, len(x))

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return None: they are drawn.

        Raises:
            ValueError: If a teacher knows its own directions alone.
        """
        for number, one in enumerate(self.teachers):
            if one.directions(query, term) is not None:
                raise ValueError(
                    f"teachers[{number}] of {_NAME} must answer along any direction, got a "
                    f"{type(one).__name__}, which has its own"
                )
        return None

    def _numbers(self, query: Query) -> Int[Tensor, " batch"]:
        path = ".".join(map(str, self._path))
        where = f"{_NAME}(index={path!r})"
        if query.batch is None:
            raise ValueError(f"{_NAME} needs the batch, but training_step was given none")
        rows = taken(f"index {path!r}", self._path, query, where)
        is_integer = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
        if rows.ndim != 1 or not is_integer:
            raise ValueError(
                f"index {path!r} in the batch must hold {len(query.x)} integers, "
                f"got {_paths.describe(rows)}"
            )
        numbers, count = rows.cpu(), len(self.teachers)
        if len(numbers) and not -1 <= int(numbers.min()) <= int(numbers.max()) < count:
            raise ValueError(
                f"index {path!r} in the batch must be in [0, {count}), a teacher, or -1, got "
                f"{int(numbers.min())} to {int(numbers.max())}"
            )
        return numbers


def _part_of(query: Query, rows: Int[Tensor, " own"]) -> Query:
    numbers = rows if query.rows is None else query.rows.to(rows.device)[rows]
    call = query.call
    if call is not None and not query.alone:
        call = _CallOnAllRows(call)
    return replace(query, x=query.x[rows], rows=numbers, call=call)


class _CallOnAllRows:
    # A call whose other arguments are there for the whole batch alone.
    def __init__(self, call: StudentCall) -> None:
        self._call = call

    @property
    def output(self) -> Sequence[str | int]:
        return self._call.output

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        return self._call.shapes

    def accepts(self, network: nn.Module) -> bool:
        return self._call.accepts(network) and self._refuse()

    def repeat(self, network: nn.Module, point: Tensor) -> Any:
        del network, point
        return self._refuse()

    def _refuse(self) -> bool:
        raise ValueError(
            f"a network in {_NAME} must not be called as the student was, with other arguments "
            "than the observed input, which are not cut to its rows; say "
            "NetworkTeacher(..., takes='input') or name them by inputs="
        )
