"""A teacher that is not there any more: its stored answers take its place."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn, InRows, OutRows, Points, Values
from lightning_sobolev.functional._hashing import hash_words
from lightning_sobolev.spec import OUTPUT_MAPS, SobolevTerm
from lightning_sobolev.teachers.caching import marks, stored_direction
from lightning_sobolev.teachers.stored import CacheSettings, is_written, open_shard, read_header

_LOOKED_AT = 10
"""Batches at the beginning whose inputs are compared with those of the cache."""


class CachedJet:
    """Value and derivatives along the directions that were stored, and along no others."""

    def __init__(
        self, settings: CacheSettings, index: Tensor, records: np.ndarray, x: Tensor
    ) -> None:
        self._settings, self._index, self._records, self._x = settings, index, records, x
        self._counter: int | None = None
        self._given: Tensor | None = None
        self._draws: list[int] = []

    @property
    def value(self) -> Values:
        """The stored value."""
        return self._tensor(self._records["value"])

    def drawn(self, term: SobolevTerm, counter: int) -> Float[Tensor, "proj batch *rest"]:
        """Return stored directions for one step; which of the draws is a hash of its number."""
        count = self._checked(term)
        if counter != self._counter or self._given is None or len(self._given) != count:
            first = hash_words(counter) % self._settings.num_draws
            self._draws = [(first + n) % self._settings.num_draws for n in range(count)]
            is_cotangent = self._settings.side == "cotangent"
            shape = tuple((self.value if is_cotangent else self._x).shape[1:])
            directions = [
                stored_direction(self._settings, self._index, shape, d) for d in self._draws
            ]
            self._given, self._counter = torch.stack(directions).to(self._x), counter
        return self._given

    def vjp(self, cotangents: OutRows) -> InRows:
        """Return the stored rows of cotangents that :meth:`drawn` gave."""
        return self._answer("cotangent", cotangents)

    def jvp(self, tangents: InRows) -> OutRows:
        """Return the stored columns of tangents that :meth:`drawn` gave."""
        return self._answer("tangent", tangents)

    def hvp(self, cotangents: OutRows, tangents: InRows) -> InRows:
        """Refuse: second derivatives are not stored."""
        del cotangents, tangents
        raise ValueError("a cached teacher has first derivatives only, got a term of order 2")

    def _checked(self, term: SobolevTerm) -> int:
        settings = self._settings
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

    def _answer(self, side: str, directions: Tensor) -> Tensor:
        # Whoever asks may have given the directions another shape, but not other numbers.
        known = -1 if self._given is None else self._given.data_ptr()
        if side != self._settings.side or directions.data_ptr() != known:
            own = f"{self._settings.side}s"
            raise ValueError(f"a cached teacher knows its own {own} alone, got other directions")
        rows, scales = self._records["derivative"], self._records["scale"]
        found = [
            rows[:, draw].astype(np.float32) * scales[:, draw].reshape(-1, *[1] * (rows.ndim - 2))
            for draw in self._draws
        ]
        return self._tensor(np.stack(found))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._x)


class CachedTeacher:
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

    allows_unknown = False
    has_directions = True

    def __init__(
        self, folder: str | Path, index: str | int = "index", *, verify: bool = True
    ) -> None:
        self.folder = Path(folder)
        content = read_header(self.folder)
        fields = CacheSettings.__dataclass_fields__
        self.settings = CacheSettings(**{name: content[name] for name in fields})
        self.num_samples = int(content["num_samples"])
        self._in_shape = tuple(content["in_shape"])
        self._path = _paths.parse(index)
        self._shards = self._opened(verify)
        self._looked_at = 0
        self._last: tuple[Tensor, CachedJet] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": None, "_last": None}

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

    def at(self, x: Points, on: BatchFn, batch: Any = None) -> CachedJet:
        """Return what was stored of the samples in ``batch``."""
        if on is not OUTPUT_MAPS[self.settings.on]:
            raise ValueError(f"on must be {self.settings.on!r}, as in the cache, got another map")
        index = self._indices(x, batch)
        if self._last is not None and self._last[0] is index:
            return self._last[1]
        numbers = index.detach().cpu()
        records = self._look_up(numbers.numpy())
        if self._looked_at < _LOOKED_AT:
            self._looked_at += 1
            self._compare(x, records)
        self._last = index, CachedJet(self.settings, numbers, records, x)
        return self._last[1]

    def _indices(self, x: Tensor, batch: Any) -> Tensor:
        name = f"CachedTeacher(index={'.'.join(map(str, self._path))!r})"
        index = _paths.get(batch, self._path, name)
        if not isinstance(index, Tensor) or index.shape != x.shape[:1] or index.is_floating_point():
            raise ValueError(
                f"index in the batch must hold {x.shape[0]} integers, got {_paths.describe(index)}"
            )
        return index

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
