"""The form of a table of runs: its columns, and which of them tell groups of runs apart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_sobolev.experiments.report.records import Record, StoredRun

_STUDENTS = {"small_cnn": "small", "nature_cnn": "same"}
_SEED = "seed"


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of a table with one line a run.

    Args:
        name: What its files are called.
        keys: Columns that say what was run, with their source; see ``StoredRun.look_up``.
        measures: Columns that say what came out, with their source.
    """

    name: str
    keys: dict[str, str]
    measures: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """All columns, in order."""
        return [*self.keys, *self.measures]

    @property
    def groups(self) -> list[str]:
        """Columns that differ between groups; runs of a group differ by their seed alone."""
        return [key for key in self.keys if key != _SEED]

    def record(self, run: StoredRun) -> Record:
        """Return the line of a run."""
        record = {k: run.look_up(source) for k, source in (self.keys | self.measures).items()}
        if "student" in record:
            record["student"] = _STUDENTS.get(str(record["student"]), record["student"])
        return record

    def with_keys(self, paths: Sequence[str]) -> "Layout":
        """Return this layout with more settings as columns.

        Args:
            paths: Key paths in the configuration, or names of groups.
        """
        added = {path: f"config:{path}" for path in paths if path not in self.keys}
        return replace(self, keys={**self.keys, **added})
