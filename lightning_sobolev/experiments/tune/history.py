"""What a population went through: who trained with what, and from whose weights."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lightning_sobolev.experiments.report.records import Record, read_csv

_PROGRESS = "progress.csv"
_KNOB = "knob_"
_COLUMNS = ("interval", "member", "parent", "end", "score")


@dataclass(frozen=True)
class History:
    """One record a member and interval.

    Args:
        records: With ``interval`` (from 1), ``member``, ``parent`` (whose weights it began from),
            ``end`` (the last step), ``score`` and one column a knob.
        mode: ``"min"`` or ``"max"`` of the score.

    Raises:
        ValueError: If no member has a finite score in the last interval.
    """

    records: list[Record]
    mode: str

    def __post_init__(self) -> None:
        if not any(map(math.isfinite, self._last.values())):
            raise ValueError("at least one member must end with a finite score, got none")

    @property
    def columns(self) -> list[str]:
        """Columns of the records."""
        return list(self.records[0])

    @property
    def knobs(self) -> list[str]:
        """Names of the knobs."""
        return [c.removeprefix(_KNOB) for c in self.columns if c.startswith(_KNOB)]

    @cached_property
    def at(self) -> dict[tuple[int, int], Record]:
        """The records by interval and member."""
        return {(int(r["interval"]), int(r["member"])): r for r in self.records}

    @property
    def intervals(self) -> int:
        """How many intervals there were."""
        return max(interval for interval, _ in self.at)

    @property
    def members(self) -> list[int]:
        """Numbers of the members."""
        return sorted({member for _, member in self.at})

    @property
    def _last(self) -> dict[int, float]:
        return {m: float(r["score"]) for (i, m), r in self.at.items() if i == self.intervals}

    def score(self, member: int) -> float:
        """Return a member's last score."""
        return self._last[member]

    @property
    def best(self) -> int:
        """The member with the best last score; those that diverged do not count."""
        finite = {m: s for m, s in self._last.items() if math.isfinite(s)}
        return (min if self.mode == "min" else max)(finite, key=lambda member: finite[member])

    @property
    def copies(self) -> int:
        """How often a member went on from somebody else's weights."""
        return sum(record["parent"] != record["member"] for record in self.records)

    @property
    def diverged(self) -> int:
        """How many intervals ended without a finite score."""
        return sum(not math.isfinite(float(record["score"])) for record in self.records)

    def ancestry(self, member: int) -> list[Record]:
        """Return the records along which a member's last weights came about, the oldest first.

        Args:
            member: Its number.
        """
        line = []
        for interval in range(self.intervals, 0, -1):
            line.append(self.at[interval, member])
            member = int(line[-1]["parent"])
        return line[::-1]


def read_history(folder: Path, mode: str) -> History:
    """Read what the members reported.

    Args:
        folder: What Ray stores. Its ``result.json`` have gaps where actors are reused.
        mode: Of the score.

    Returns:
        The history; of an interval that was trained twice, around a kill, the later one.
    """
    found: dict[tuple[float, float], Record] = {}
    for path in sorted(folder.glob(f"*/{_PROGRESS}")):
        for line in read_csv(path)[1]:
            # A number is written as nothing where it is NaN.
            score = line[_COLUMNS[-1]]
            record: Record = {
                "interval": line["training_iteration"],
                **{name: line[name] for name in _COLUMNS[1:-1]},
                "score": score if isinstance(score, float) else math.nan,
                **{key: cell for key, cell in line.items() if key.startswith(_KNOB)},
            }
            found[float(record["interval"]), float(record["member"])] = record
    return History([found[key] for key in sorted(found)], mode)
