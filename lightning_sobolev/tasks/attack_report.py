"""The attacks and defences of several classifiers in one table each."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_sobolev.tasks.attack_study import (
    ATTACK_COLUMNS,
    ATTACK_MEASURES,
    ATTACKS,
    DEFENCE_COLUMNS,
    DEFENCE_MEASURES,
    DEFENCES,
)
from lightning_sobolev.tasks.columns import Layout
from lightning_sobolev.tasks.records import Record, StoredRun, find_runs, read_csv, write_csv
from lightning_sobolev.tasks.tables import summarize, write_markdown

PICTURES = ("vulnerable", "adversarial", "influence")
_PGD = "pgd"


def attack_report(root: Path, out: Path, *, name: str = "sensitivity") -> list[Path]:
    """Write ``NAME.csv`` and ``.md`` of attacks, ``NAME_defences`` and ``NAME_influence`` likewise.

    The pictures of the first run are copied beside them.

    Args:
        root: A folder with finished runs of the experiment ``sensitivity``.
        out: Where everything goes.
        name: How the files' names begin.

    Returns:
        The files.

    Raises:
        ValueError: If no run has made attacks.
    """
    runs = [run for run in find_runs(root) if (run.folder / ATTACKS).is_file()]
    if not runs:
        raise ValueError(f"a folder with runs that hold {ATTACKS} is needed, got {root}")
    out.mkdir(parents=True, exist_ok=True)
    measures = [m.replace("seconds", "seconds_per_pgd") for m in ATTACK_MEASURES]
    written = _table(out, name, ATTACK_COLUMNS, measures, _lines(runs, ATTACKS, _relative))
    columns = _lines(runs, DEFENCES, list)
    written += _table(out, f"{name}_defences", DEFENCE_COLUMNS, DEFENCE_MEASURES, columns)
    shares = sorted(key for key in runs[0].metrics if key.startswith("influence/"))
    numbers = ["test/accuracy", *shares]
    found: list[Record] = [
        {"seed": run.look_up("config:seed"), **{key: run.metrics[key] for key in numbers}}
        for run in runs
    ]
    written += _table(out, f"{name}_influence", (), numbers, found)
    for picture in PICTURES:
        source = runs[0].folder / f"{picture}.png"
        if source.is_file():
            written.append(Path(shutil.copy(source, out / f"{name}_{picture}.png")))
    return written


def _lines(
    runs: Sequence[StoredRun], file: str, change: Callable[[list[Record]], list[Record]]
) -> list[Record]:
    return [
        {"seed": run.look_up("config:seed"), **line}
        for run in runs
        for line in change(read_csv(run.folder / file)[1])
    ]


def _relative(lines: list[Record]) -> list[Record]:
    """Return the lines with seconds in those of the package's own gradient attack."""
    one = {line["images"]: float(line["seconds"]) for line in lines if line["attack"] == _PGD}
    ratio = "seconds_per_pgd"
    return [{**line, ratio: float(line["seconds"]) / one[line["images"]]} for line in lines]


def _table(
    out: Path, name: str, keys: Sequence[str], measures: Sequence[str], records: list[Record]
) -> list[Path]:
    layout = Layout(name, dict.fromkeys([*keys, "seed"], ""), dict.fromkeys(measures, ""))
    table, text = out / f"{name}.csv", out / f"{name}.md"
    write_csv(table, layout.columns, records)
    write_markdown(text, layout, summarize(layout, records), source="scripts/sensitivity.py")
    return [table, text]
