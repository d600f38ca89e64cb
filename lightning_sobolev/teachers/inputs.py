"""A network's arguments that stand in the batch; one of them is what the student observes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Query
from lightning_sobolev.teachers.arrays import taken

Argument = str | int | Sequence[str | int]
"""Key path of one tensor in the batch, or of several that are joined along their last axis."""

Inputs = Argument | Sequence[Argument] | Mapping[str, Argument]
"""Arguments by position, by name, or a single one."""

_Paths = tuple[_paths.Path, ...]
_TEACHER = "NetworkTeacher"
_CONVERT_TAKES = "a function of what the student observes and of the batch's own tensor (x, held)"


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """Where a network's arguments stand in the batch, and which of them the student shares."""

    positional: tuple[_Paths, ...]
    named: dict[str, _Paths]
    shared: _paths.Path

    @classmethod
    def parse(cls, inputs: Inputs, shared: str | int | None) -> "BatchInputs":
        """Return what a teacher was told, read.

        Raises:
            ValueError: If there is no input, or ``shared`` is none of them.
        """
        is_one = isinstance(inputs, str | int | Sequence | Mapping)
        require(is_one, "inputs", "one key path into the batch, or several", inputs)
        named = dict(inputs) if isinstance(inputs, Mapping) else {}
        ordered = [inputs] if isinstance(inputs, str | int) else [] if named else list(inputs)
        positional = tuple(map(_parsed, ordered))
        by_name = {name: _parsed(one) for name, one in named.items()}
        paths = {path for one in (*positional, *by_name.values()) for path in one}
        require(bool(paths), "inputs", "one key path into the batch, or several", inputs)
        known = [_text(path) for path in sorted(paths, key=_text)]
        own = next(iter(paths)) if shared is None and len(paths) == 1 else None
        own = own if shared is None else _paths.parse(shared, "shared")
        if own not in paths:
            raise ValueError(f"shared must be one of the inputs {known}, got {shared!r}")
        return cls(positional, by_name, own)

    def check_call(self, network: nn.Module) -> None:
        """Refuse a network that does not take these arguments.

        Raises:
            ValueError: If its signature says so.
        """
        names = [*map(_joined, self.positional), *self.named]
        try:
            inspect.signature(network.forward).bind(*self.positional, **self.named)
        except TypeError as error:
            raise ValueError(
                f"inputs must be the arguments of {type(network).__name__}.forward, got {names}: "
                f"{error}"
            ) from error
        except ValueError:  # written in C: the call will tell
            return

    def look_up(self, query: Query, dtype: torch.dtype) -> "LookedUp":
        """Return the queried rows of all arguments, floats in the given type.

        Raises:
            ValueError: If there is no batch, or it does not hold an argument for each row.
        """
        if query.batch is None:
            raise ValueError(
                f"{_TEACHER}(inputs=...) needs the batch, but training_step was given none"
            )
        arguments = (*self.positional, *self.named.values())
        others = {path for one in arguments for path in one} - {self.shared}
        found = {path: _rows(path, query, dtype) for path in others}
        held = None
        if _is_there(query.batch, self.shared):  # else the step has computed it
            held = _rows(self.shared, query, torch.promote_types(dtype, query.x.dtype))
        return LookedUp(self, found, held)


@dataclass(frozen=True, slots=True, eq=False)
class LookedUp:
    """The arguments of one query, all but the one that is differentiated."""

    inputs: BatchInputs
    others: dict[_paths.Path, Tensor]
    held: Tensor | None

    def enter(
        self, convert: Callable[[Tensor, Tensor], Tensor] | None, point: Tensor
    ) -> Shaped[Tensor, "batch *own"]:
        """Return what takes the shared tensor's place.

        Raises:
            ValueError: If it has not that tensor's shape, or ``convert`` needs one that is missing.
        """
        shared = _text(self.inputs.shared)
        if convert is not None:
            if self.held is None:
                raise ValueError(f"convert needs {shared!r} in the batch, got none")
            point = checked("convert", convert(point, self.held))
        if self.held is not None and point.shape != self.held.shape:
            came = "the observed input is" if convert is None else "convert gives"
            raise ValueError(
                f"shared={shared!r} must be what the student observes: in the batch it is "
                f"{list(self.held.shape)}, {came} {list(point.shape)}; where the student sees a "
                "part of it, convert=lambda x, held: ... puts x into what the batch holds"
            )
        return point

    def call(self, network: nn.Module, point: Tensor) -> Any:
        """Call a network with ``point`` in the shared tensor's place."""
        args = [self._argument(paths, point) for paths in self.inputs.positional]
        kwargs = {name: self._argument(one, point) for name, one in self.inputs.named.items()}
        return network(*args, **kwargs)

    def _argument(self, paths: _Paths, point: Tensor) -> Tensor:
        parts = [point if p == self.inputs.shared else self.others[p] for p in paths]
        if len(parts) == 1:
            return parts[0]
        try:
            return torch.cat(parts, -1)
        except RuntimeError as error:
            shapes = {_text(path): list(p.shape) for path, p in zip(paths, parts, strict=True)}
            raise ValueError(
                f"inputs must agree in all axes but the last to be joined, got {shapes}"
            ) from error


def checked(name: str, found: object) -> Tensor:
    """Return what a user's function gave.

    Raises:
        ValueError: If it is no tensor.
    """
    require(isinstance(found, Tensor), name, "a function that gives a tensor", type(found).__name__)
    assert isinstance(found, Tensor)
    return found


def check_convert(convert: object) -> None:
    """Refuse a conversion that cannot take the batch's own tensor beside x.

    Raises:
        ValueError: If its signature says so.
    """
    try:
        signature = inspect.signature(convert)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C: the call will tell
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"convert beside inputs must be {_CONVERT_TAKES}, got one of {signature}"
        ) from error


def _parsed(argument: Argument) -> _Paths:
    paths = [argument] if isinstance(argument, str | int) else argument
    is_list = isinstance(paths, Sequence) and all(isinstance(path, str | int) for path in paths)
    require(is_list, "inputs", "key paths, or lists of those that are joined", argument)
    return tuple(_paths.parse(path, "inputs") for path in paths)


def _joined(paths: _Paths) -> str:
    return " + ".join(map(_text, paths))


def _text(path: _paths.Path) -> str:
    return ".".join(map(str, path))


def _rows(path: _paths.Path, query: Query, dtype: torch.dtype) -> Tensor:
    rows = taken(f"inputs: {_text(path)!r}", path, query, f"{_TEACHER}(inputs={_text(path)!r})")
    return rows.to(query.x.device, dtype if rows.is_floating_point() else rows.dtype)


def _is_there(batch: Any, path: _paths.Path) -> bool:
    try:
        _paths.get(batch, path, "shared")
    except ValueError:
        return False
    return True
