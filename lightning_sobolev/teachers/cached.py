"""A teacher that is not there any more: its stored answers take its place."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Directions, InRows, OutRows, Query, Teacher, Values
from lightning_sobolev.functional.projections import hash_words
from lightning_sobolev.spec import OUTPUT_MAPS, SobolevTerm
from lightning_sobolev.teachers.arrays import taken_rows
from lightning_sobolev.teachers.caching import marks, stored_direction
from lightning_sobolev.teachers.stored import CacheSettings, is_written, open_shard, read_header

_LOOKED_AT = 10
"""Batches at the beginning whose inputs are compared with those of the cache."""

_REMEMBERED = 8
"""Queries whose directions are known: those of all terms of a step, which may differ in rows."""


class Samples:
    """Which samples one query is about, and the directions that were given for it."""

    def __init__(self, index: Tensor, query: Query, numbers: Tensor) -> None:
        self._index, self._rows = index, query.rows
        self.step, self.numbers = query.step, numbers
        self.given: dict[int, Float[Tensor, "proj batch *rest"]] = {}

    def are_at_once(self, index: Tensor, query: Query) -> bool:
        """Whether a query is about them, seen without reading a number."""
        return self._index is index and self._rows is query.rows and self.step == query.step


class CachedJet:
    """Value and derivatives along the directions that were stored, and along no others."""

    def __init__(
        self, settings: CacheSettings, samples: Samples, records: np.ndarray, x: Tensor
    ) -> None:
        self._settings, self._samples, self._records, self._x = settings, samples, records, x

    @property
    def value(self) -> Values:
        """The stored value."""
        return self._tensor(self._records["value"])

    def vjp(self, cotangents: OutRows) -> InRows:
        """Return the stored rows of cotangents that the teacher gave."""
        return self._answer("cotangent", cotangents)

    def jvp(self, tangents: InRows) -> OutRows:
        """Return the stored columns of tangents that the teacher gave."""
        return self._answer("tangent", tangents)

    def hvp(self, cotangents: OutRows, tangents: InRows) -> InRows:
        """Refuse: second derivatives are not stored."""
        del cotangents, tangents
        raise ValueError("a cached teacher has first derivatives only, got a term of order 2")

    def _answer(self, side: str, directions: Tensor) -> Tensor:
        given = self._samples.given.get(len(directions))
        if side != self._settings.side or given is None or directions.shape != given.shape:
            own = f"{self._settings.side}s"
            raise ValueError(f"a cached teacher knows its own {own} alone, got other directions")
        rows, scales = self._records["derivative"], self._records["scale"]
        found = [
            rows[:, draw].astype(np.float32) * scales[:, draw].reshape(-1, *[1] * (rows.ndim - 2))
            for draw in _draws(self._settings, self._samples.step, len(directions))
        ]
        return self._tensor(np.stack(found))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._x)


def _draws(settings: CacheSettings, step: int, count: int) -> list[int]:
    first = hash_words(step) % settings.num_draws
    return [(first + n) % settings.num_draws for n in range(count)]


class CachedTeacher(Teacher):
    r"""Answers from the files that :func:`~lightning_sobolev.teachers.cache_answers` wrote.

    Training needs no teacher in memory and no teacher's passes. Each step takes one of the draws
    that were stored of every sample; as many as there were projections, if there are several.

    Cost: reading, and the directions: as many random numbers as a tangent or a cotangent has.

    Args:
        folder: The cache.
        index: Key path of the samples' numbers in the batch, integers ``[batch]``.
        verify: Whether to compare checksums when it is opened; about 1 s per GB.

    Raises:
        ValueError: If the cache is incomplete or its bytes were changed.
    """

    def __init__(
        self, folder: str | Path, index: str | int = "index", *, verify: bool = True
    ) -> None:
        self.folder = Path(folder)
        content = read_header(self.folder)
        fields = CacheSettings.__dataclass_fields__
        self.settings = CacheSettings(**{name: content[name] for name in fields})
        self.num_samples = int(content["num_samples"])
        self._in_shape, self._out_shape = tuple(content["in_shape"]), tuple(content["out_shape"])
        self._path = _paths.parse(index, "index")
        self._shards = self._opened(verify)
        self._looked_at = 0
        self._recent: deque[Samples] = deque(maxlen=_REMEMBERED)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": None, "_recent": deque(maxlen=_REMEMBERED)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._shards = self._opened(verify=False)

    def _opened(self, verify: bool) -> list[np.ndarray]:
        count = -(-self.num_samples // self.settings.shard_size)
        if missing := [n for n in range(count) if not is_written(self.folder, n)]:
            raise ValueError(
                f"the cache in {self.folder} must be complete, got {len(missing)} of {count} "
                "shards missing: call cache_answers again to go on"
            )
        return [open_shard(self.folder, n, verify=verify) for n in range(count)]

    @property
    def is_stored(self) -> bool:
        """True: the batch has derivatives at its own inputs."""
        return True

    def at(self, query: Query) -> CachedJet:
        """Return what was stored of the samples that the query is about."""
        samples = self._samples(query)
        records = self._look_up(samples.numbers.numpy())
        if self._looked_at < _LOOKED_AT:
            self._looked_at += 1
            self._compare(query.x, records)
        return CachedJet(self.settings, samples, records, query.x)

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return stored directions; which of the draws is a hash of the step's number."""
        if term.order == 0:
            return None
        count, samples, settings = self._checked(term), self._samples(query), self.settings
        if count not in samples.given:
            is_cotangent = settings.side == "cotangent"
            shape = self._out_shape if is_cotangent else self._in_shape
            directions = [
                stored_direction(settings, samples.numbers, shape, draw)
                for draw in _draws(settings, query.step, count)
            ]
            samples.given[count] = torch.stack(directions).to(query.x)
        given = samples.given[count]
        return Directions(given) if settings.side == "cotangent" else Directions(None, given)

    def _checked(self, term: SobolevTerm) -> int:
        settings = self.settings
        for name in ("side", "projection"):
            stored, got = getattr(settings, name), getattr(term, name)
            if stored != got or term.order != 1:
                raise ValueError(
                    f"{name} of term {term.key!r} must be {stored!r} of order 1, as in the cache, "
                    f"got {got!r} of order {term.order}"
                )
        count = term.num_projections
        if count is None or count > settings.num_draws:
            raise ValueError(
                f"num_projections of term {term.key!r} must be at most the {settings.num_draws} "
                f"draws of the cache, got {count}"
            )
        return count

    def _samples(self, query: Query) -> Samples:
        # A stored direction is that of one row; a graph has many.
        require(query.groups is None, "groups", "None with a CachedTeacher", "nodes of graphs")
        if query.on is not OUTPUT_MAPS[self.settings.on]:
            raise ValueError(f"on must be {self.settings.on!r}, as in the cache, got another map")
        name = f"CachedTeacher(index={'.'.join(map(str, self._path))!r})"
        index = _paths.get(query.batch, self._path, name)
        for known in self._recent:
            if known.are_at_once(index, query):
                return known
        taken = taken_rows(index, query)
        if taken is None or taken.ndim != 1 or taken.is_floating_point():
            raise ValueError(
                f"index in the batch must hold {query.x.shape[0]} integers, "
                f"got {_paths.describe(index)}"
            )
        numbers = taken.detach().cpu()
        for known in self._recent:
            if known.step == query.step and torch.equal(known.numbers, numbers):
                return known
        if any(known.step != query.step for known in self._recent):
            self._recent.clear()  # directions take room
        self._recent.append(Samples(index, query, numbers))
        return self._recent[-1]

    def _look_up(self, numbers: np.ndarray) -> np.ndarray:
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.num_samples:
            raise ValueError(
                f"index must be in [0, {self.num_samples}), the samples of the cache, got "
                f"{numbers.min()} to {numbers.max()}"
            )
        shards, rows = np.divmod(numbers, self.settings.shard_size)
        records = np.empty(len(numbers), self._shards[0].dtype)
        for shard in np.unique(shards):
            own = shards == shard
            records[own] = self._shards[shard][rows[own]]
        return records

    def _compare(self, x: Tensor, records: np.ndarray) -> None:
        expected = torch.from_numpy(records["mark"].copy())
        found = marks(x, self.settings.seed).cpu()
        # Rounding of a sum of n numbers; an augmented or foreign input is off by its own size.
        allowed = 1e-4 * x.detach().flatten(1).float().norm(dim=1).double().cpu() + 1e-6
        if tuple(x.shape[1:]) != self._in_shape or bool(((found - expected).abs() > allowed).any()):
            raise ValueError(
                "the inputs of the student must be those of the cache, got others under the same "
                "index: augmented, scaled differently, or of another data set"
            )
