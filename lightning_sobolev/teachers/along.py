"""Labels that are derivatives along directions of their own, in the batch beside the inputs."""

from lightning_sobolev import _paths
from lightning_sobolev._types import Jet, Query, Teacher
from lightning_sobolev.teachers.arrays import BatchCheck, Rows, lookup
from lightning_sobolev.teachers.tabulated import TabulatedJet


class KnownAlong(Teacher):
    """A teacher whose ``directions`` bring what is known along them; values are stored whole.

    Args:
        value: Key path of the value, for order-0 terms.
        stores_mapped: Whether the arrays are those of the output behind the spec's output map.
    """

    allows_unknown = True

    def __init__(self, value: str | int | None, *, stores_mapped: bool) -> None:
        self._value = None if value is None else _paths.parse(value, "value")
        self._check = BatchCheck(type(self).__name__, stores_mapped=stores_mapped)

    @property
    def is_stored(self) -> bool:
        """True: the batch has derivatives at its own inputs."""
        return True

    def at(self, query: Query) -> Jet:
        """Return the value in the query's batch; derivatives come with their directions."""
        self._check(query)
        name = type(self).__name__
        value = lookup("value", self._value, query, name, Rows.of_output(query))
        return TabulatedJet(query.x.shape[1:], value=value, source="the batch")
