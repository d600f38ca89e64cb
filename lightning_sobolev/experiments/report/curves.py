"""The curves of one run."""

from pathlib import Path

import pandas as pd

from lightning_sobolev._files import whole

_MOST_LINES = 8
"""In one panel: more cannot be told apart."""


def save_curves(folder: Path) -> Path | None:
    """Draw what was logged over steps into ``curves.png``, one panel for each group of keys.

    Args:
        folder: The folder of a run, with its ``curves.csv``.

    Returns:
        The figure's path, or None when nothing was logged.
    """
    from matplotlib.figure import Figure

    path = folder / "curves.csv"
    if not path.is_file():
        return None
    curves = pd.read_csv(path).set_index("step").drop(columns="seconds")
    groups = _groups([key for key in curves if curves[key].abs().max() > 0])
    if not groups:
        return None
    figure = Figure(figsize=(4.5 * len(groups), 3.5), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, keys) in zip(panels, groups.items(), strict=True):
        for key in keys[:_MOST_LINES]:
            values = curves[key].dropna()
            marker = "." if len(values) == 1 else ""
            axes.plot(values.index, values, label=key, marker=marker, linewidth=1.2)
        is_positive = bool((curves[keys].min() > 0).all())
        axes.set(xlabel="step", ylabel=title, yscale="log" if is_positive else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with whole(folder / "curves.png") as writing:
        figure.savefig(writing, dpi=120, format="png")
    return folder / "curves.png"


def _groups(keys: list[str]) -> dict[str, list[str]]:
    """Sort keys into panels: losses of training, unweighted terms, and each kind of validation."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        stage, _, name = key.partition("/")
        if stage == "train":
            title = "term" if name.startswith("sobolev/") and name != "sobolev/total" else "loss"
        else:
            title = f"validation: {name.split('_')[-1]}"
        groups.setdefault(title, []).append(key)
    return groups
