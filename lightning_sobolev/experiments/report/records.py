"""Finished runs as flat records: found below a folder, or read from a table of earlier ones."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.run.finished import METRICS

Cell = str | float | int
Record = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A finished run on disk.

    Args:
        folder: The folder of the run.
        metrics: The content of ``metrics.json``.
        config: Its configuration, not resolved.
        choices: Which file was chosen from every group.
    """

    folder: Path
    metrics: dict[str, Cell]
    config: DictConfig
    choices: dict[str, str]

    def look_up(self, source: str) -> Cell:
        """Return what ``source`` names.

        Args:
            source: ``metric:KEY``, ``choice:GROUP`` or ``config:KEY.PATH``.

        Returns:
            The entry; NaN for a missing metric, an empty text for a missing setting.

        Raises:
            ValueError: If the source has another form.
        """
        kind, _, key = source.partition(":")
        if kind == "metric":
            return self.metrics.get(key, math.nan)
        if kind == "choice":
            return self.choices.get(key, "")
        if kind == "config":
            value = OmegaConf.select(self.config, key)
            return value if isinstance(value, str | float | int) else _text(value)
        raise ValueError(f"source must begin with metric:, choice: or config:, got {source!r}")


def find_runs(root: Path) -> list[StoredRun]:
    """Collect every finished run below a folder, in the order of their paths.

    Args:
        root: A folder; runs without ``metrics.json`` did not finish and are left out.

    Returns:
        The runs.

    Raises:
        ValueError: If there is no finished run.
    """
    runs = [_read(path.parent) for path in sorted(root.rglob(METRICS), key=_natural)]
    if not runs:
        raise ValueError(f"a folder with finished runs ({METRICS}) is needed, got none in {root}")
    return runs


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort 2 before 10: a sweep numbers its folders."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _read(folder: Path) -> StoredRun:
    metrics = json.loads((folder / METRICS).read_text())
    config, choices = OmegaConf.create(), {}
    if (folder / ".hydra" / "config.yaml").is_file():
        loaded = OmegaConf.load(folder / ".hydra" / "config.yaml")
        hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
        assert isinstance(loaded, DictConfig)
        config, choices = loaded, dict(hydra.hydra.runtime.choices)
    numbers = {key: math.nan if value is None else value for key, value in metrics.items()}
    return StoredRun(folder, numbers, config, {k: _text(v) for k, v in choices.items()})


def _text(value: object) -> str:
    return "" if value is None else str(value)


def write_csv(path: Path, columns: Sequence[str], records: Sequence[Record]) -> None:
    """Write records, whole or not at all.

    Args:
        path: The file.
        columns: Which entries, in order.
        records: One line each; numbers are written with six digits.
    """
    with whole(path) as writing, writing.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(record[column]) for column in columns] for record in records)


def _cell(value: Cell) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_csv(path: Path, texts: Sequence[str] = ()) -> tuple[list[str], list[Record]]:
    """Read a table back.

    Args:
        path: A file with a header.
        texts: Columns that stay as they are, though they may look like numbers.

    Returns:
        The columns and one record a line, numbers as floats.

    Raises:
        ValueError: If the file is empty.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        records: list[Record] = [
            {key: cell if key in texts else _number(cell) for key, cell in line.items()}
            for line in reader
        ]
    if not reader.fieldnames or not records:
        raise ValueError(f"a table with a header and at least one line is needed, got {path}")
    return list(reader.fieldnames), records


def _number(text: str) -> Cell:
    try:
        return float(text)
    except ValueError:
        return text
