"""Table and charts of what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sobolev._files import write_text
from lightning_sobolev.experiments.benchmark.methods import METHODS

Row = dict[str, Any]
_HEAD = (
    "| method | ms a step | to plain | to distillation | to best by hand | to the limit | "
    "peak MB | GFLOP |"
)
_INTRO = """# Speed of a step

Made by `python scripts/benchmark.py`; `conf/benchmark.yaml` lists what can be set. Medians over
rounds in which all methods take turns in one process; ratios are medians of each round's own, with
quartiles. *To plain*: the student alone, values from the batch. *To distillation*: a teacher asked
for values. *To the limit*: the row's time, divided by that of plain distillation times the fewest
floating-point operations that do the row's work over those of plain distillation. *Peak*: allocated
during a step beyond what is held between steps. A ratio to the limit below 1 says that much of
plain distillation's time is not in the operations that are counted.
"""


def write_table(path: Path, rows: Sequence[Row]) -> Path:
    """Write all rows as Markdown, whole or not at all.

    Args:
        path: The file.
        rows: From ``speed.json``.

    Returns:
        The file.
    """
    lines = [_INTRO]
    for name in dict.fromkeys(_workload(row) for row in rows):
        lines += _workload_lines(name, [row for row in rows if _workload(row) == name])
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


def _workload_lines(name: str, rows: Sequence[Row]) -> list[str]:
    lines = [f"## {name}", "", _conditions(rows[0]["device"], rows[0].get("settings", {})), ""]
    lines += [_HEAD, "|" + "---|" * 8]
    lines += [_line(row) for row in rows if "refused" not in row]
    lines += [""]
    lines += [f"- {_title(r)}: not possible ({r['refused']})" for r in rows if "refused" in r]
    return [*lines, f"![{name}](speed_{name}.png)", ""]


def save_charts(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw a bar chart for each workload.

    Args:
        folder: Where the pictures go.
        rows: From ``speed.json``.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    paths = []
    for name in dict.fromkeys(_workload(row) for row in rows):
        own = [row for row in rows if _workload(row) == name and "refused" not in row]
        figure = Figure(figsize=(7.0, 0.4 * len(own) + 1.2), layout="constrained")
        axes = figure.subplots()
        ratios = [row["ratio_to_distillation"] for row in own]
        colors = ["C0" if row["method"] in _HAND else "C2" for row in own]
        bars = axes.barh([_title(row) for row in own], ratios, color=colors)
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.set(xlabel="time of a step, plain distillation = 1", title=name)
        axes.margins(x=0.12)
        paths.append(folder / f"speed_{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


_HAND = ("plain", "distillation", "as_usual", "at_best", "over_outputs", "by_jacrev")


def _workload(row: Row) -> str:
    return f"{row['network']}-{row['batch']}"


def _title(row: Row) -> str:
    return METHODS[row["method"]].title


def _conditions(device: str, settings: Row) -> str:
    clocks = {"cpu": "seconds of processor time", "wall": "seconds on the clock"}
    clock = clocks.get(settings.get("clock", ""), "seconds")
    threads, torch = settings.get("threads"), settings.get("torch")
    return f"Device {device}, {threads} thread(s) of torch {torch}, {clock}."


def _line(row: Row) -> str:
    def ratio(key: str) -> str:
        low, high = row[f"{key}_quartiles"]
        return f"{row[key]:.2f} ({low:.2f} to {high:.2f})"

    keys = ("ratio_to_plain", "ratio_to_distillation", "ratio_to_best_by_hand", "ratio_to_limit")
    cells = [_title(row), f"{1e3 * row['median_seconds']:.3g}", *map(ratio, keys)]
    cells += [f"{row['peak_bytes'] / 1e6:.3g}", f"{row['flops'] / 1e9:.3g}"]
    return "| " + " | ".join(cells) + " |"
