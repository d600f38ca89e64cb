"""What the first batches of a fit say: points, values and Jacobians, kept for an examination."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_sobolev._types import Jet, Query
from lightning_sobolev.teachers.tabulated import TabulatedJet


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Points, their values and their Jacobians: flat, in float64 on the CPU.

    Args:
        x: The points.
        y: Their values; NaN is not known.
        jacobian: Their Jacobians; NaN is not known.
    """

    x: Float[Tensor, "points in"]
    y: Float[Tensor, "points out"]
    jacobian: Float[Tensor, "points out in"]

    def __len__(self) -> int:
        return len(self.x)


def samples_of(x: Float[Tensor, "batch *in"], jet: Jet, rows: Int[Tensor, " rows"]) -> Samples:
    """Read value and whole Jacobian of a jet at some of its points.

    A tabulated jet is copied. Any other is asked for one row of the Jacobian after the other, which
    takes as many backward passes as there are outputs.

    Args:
        x: The points at which the jet was taken.
        jet: Must have a value and a Jacobian.
        rows: Numbers of the points that are wanted.

    Returns:
        Points, values and Jacobians, in the order of ``rows``.
    """
    flat, value = x.detach().reshape(len(x), -1), jet.value.detach().reshape(len(x), -1)
    found = jet.jacobian if isinstance(jet, TabulatedJet) else _pulled(jet)
    jacobian = found.detach().reshape(*value.shape, flat.shape[1])
    return Samples(*(_plain(part, rows) for part in (flat, value, jacobian)))


def _pulled(jet: Jet) -> Float[Tensor, "batch axes *in"]:
    value = jet.value
    eye = torch.eye(value[0].numel(), dtype=value.dtype, device=value.device)
    return jet.vjp(eye[:, None].expand(-1, len(value), -1).reshape(-1, *value.shape)).transpose(
        0, 1
    )


def _plain(tensor: Tensor, rows: Int[Tensor, " rows"]) -> Tensor:
    # Moved first: not every device knows double precision.
    return tensor[rows.to(tensor.device)].cpu().double()


class Gathering:
    """Keeps the first points of a fit that differ from one another, a bounded number of them.

    Points of another size than those before (sequences, images) cannot be compared with them: then
    it is full, and what was kept is dropped.

    Args:
        most: Points after which it is full.
        batches: Batches after which it takes no more: a later epoch brings the same points again.
        numbers: Most numbers that all Jacobians together may have (8 bytes each).
    """

    def __init__(self, most: int = 200, batches: int = 32, numbers: int = 2**24) -> None:
        self._most, self._batches, self._numbers = most, batches, numbers
        self._kept: list[Samples] = []
        self._known: set[int] = set()
        self._seen = self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_vain(self) -> bool:
        """Whether it takes no more and has kept nothing."""
        return self.is_full and not self._count

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return self._seen >= self._batches or len(self) >= self._most

    def take(self, query: Query, jet: Jet) -> None:
        """Keep what is new of a teacher's answer, as long as it is not full."""
        if self.is_full or not len(query.x):
            return
        self._seen += 1
        inputs, outputs = query.x[0].numel(), jet.value[0].numel()
        if self._kept and self._kept[0].jacobian.shape[1:] != (outputs, inputs):
            self._kept, self._count, self._seen = [], 0, self._batches
            return
        room = min(self._most, self._numbers // max(outputs * inputs, 1)) - len(self)
        rows = self._new_rows(query.x.detach())[:room] if room > 0 else []
        if rows:
            self._kept.append(samples_of(query.x, jet, torch.tensor(rows)))
            self._count += len(rows)
        if len(rows) >= room:
            self._seen = self._batches

    def _new_rows(self, x: Float[Tensor, "batch *in"]) -> list[int]:
        # Points that come again would be counted as evidence again.
        marks = [hash(row.tobytes()) for row in x.cpu().double().numpy()]
        first = {mark: n for n, mark in reversed(list(enumerate(marks)))}
        rows = sorted(n for mark, n in first.items() if mark not in self._known)
        self._known.update(marks)
        return rows

    def samples(self) -> Samples:
        """Return all that was kept.

        Raises:
            ValueError: If nothing was.
        """
        if not self._kept:
            raise ValueError("samples: no batch was taken yet")
        parts = [(s.x, s.y, s.jacobian) for s in self._kept]
        return Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))
