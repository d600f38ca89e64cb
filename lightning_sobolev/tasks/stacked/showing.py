"""The page and the picture that are made from the runs of a study."""

from collections.abc import Sequence
from pathlib import Path

from lightning_sobolev._files import write_text
from lightning_sobolev.tasks.figures import Points, draw_curve
from lightning_sobolev.tasks.records import Record, read_csv
from lightning_sobolev.tasks.stacked.tables import (
    MEASURES,
    error_lines,
    label_lines,
    sign_lines,
)
from lightning_sobolev.tasks.tables import MeanAndError

_WIDTH, _HEIGHT = 3.6, 3.4


def show(table: Path) -> list[Path]:
    """Write a study's tables beside its runs, and a picture where there are levels of noise.

    Args:
        table: The runs, as ``scripts/known_derivatives.py`` wrote them.

    Returns:
        The files.

    Raises:
        ValueError: If the table is empty.
    """
    records = read_csv(table)[1]
    command = f"scripts/known_derivatives_tables.py {table.name}"
    lines = [f"# {table.stem}", "", f"Mean ± standard error over seeds, made by `{command}`."]
    for measure in MEASURES:
        lines += ["", f"## {measure}", "", *error_lines(records, measure)]
    lines += ["", "## Squared error of the given derivatives over their square", ""]
    lines += label_lines(records)
    for size in dict.fromkeys(float(record["num_points"]) for record in records):
        lines += ["", f"## Signs of harm, {size:g} points", ""]
        lines += sign_lines([record for record in records if record["num_points"] == size])
    page = table.with_suffix(".md")
    write_text(page, "\n".join(lines) + "\n")
    if len({record["noise"] for record in records}) < 2:
        return [page]
    return [page, draw_noise(table.with_suffix(".png"), records)]


def draw_noise(path: Path, records: Sequence[Record]) -> Path:
    """Draw the value error over the level of noise: axes a function, a curve a method.

    Args:
        path: The picture.
        records: One a run.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    functions = list(dict.fromkeys(str(record["function"]) for record in records))
    figure = Figure(figsize=(_WIDTH * len(functions), _HEIGHT), layout="constrained")
    least = min(float(record["noise"]) for record in records if record["noise"])
    row = figure.subplots(1, len(functions), squeeze=False)[0]
    for axes, function in zip(row, functions, strict=True):
        own = [record for record in records if record["function"] == function]
        for method in dict.fromkeys(str(record["method"]) for record in own):
            curve = _curve([record for record in own if record["method"] == method])
            if len(curve) > 1:
                draw_curve(axes, method, curve)
            else:  # without derivatives there is no noise on them
                axes.axhline(curve[0][1].mean, color="black", linestyle="--", label=method)
        axes.set_xscale("symlog", linthresh=least)
        axes.set(yscale="log", title=function.replace("_", " "), xlabel="noise of the derivatives")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("normalized value error")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _curve(records: Sequence[Record]) -> Points:
    levels = sorted({float(record["noise"]) for record in records})
    return [
        (
            level,
            MeanAndError.of(
                [float(r["test_value_nmse"]) for r in records if float(r["noise"]) == level]
            ),
        )
        for level in levels
    ]
