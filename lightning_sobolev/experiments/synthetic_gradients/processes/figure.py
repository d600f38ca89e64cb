"""Bars of waiting, throughput and accuracy of sections in processes of their own."""

from pathlib import Path

from lightning_sobolev.experiments.report.layouts import DECOUPLING
from lightning_sobolev.experiments.report.records import Cell
from lightning_sobolev.experiments.report.tables import MeanAndError, Summary

_PANELS = {
    "waited": "share of time spent waiting",
    "samples_per_second": "pictures per second",
    "test_accuracy": "test accuracy",
}


def draw_waiting(path: Path, summary: Summary) -> Path:
    """Draw a cluster of bars for every delay, a bar for every way.

    Args:
        path: The picture.
        summary: Averages over rounds.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(1, 3), _PANELS.items(), strict=True):
        clusters = _clusters(summary, measure)
        ways = list(dict.fromkeys(way for cluster in clusters.values() for way in cluster))
        width = 0.8 / len(ways)
        for number, way in enumerate(ways):
            known = [(i, c[way]) for i, c in enumerate(clusters.values()) if way in c]
            axes.bar(
                [i + width * (number - (len(ways) - 1) / 2) for i, _ in known],
                [estimate.mean for _, estimate in known],
                width,
                yerr=[estimate.error if estimate.count > 1 else 0.0 for _, estimate in known],
                capsize=2,
                label=way,
            )
        axes.set_xticks(range(len(clusters)), [f"{1000 * float(d):g} ms" for d in clusters])
        axes.set(title=title, xlabel="simulated delay of a pass")
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _clusters(summary: Summary, measure: str) -> dict[Cell, dict[str, MeanAndError]]:
    clusters: dict[Cell, dict[str, MeanAndError]] = {}
    for group, estimates in summary.items():
        cells = dict(zip(DECOUPLING.groups, group, strict=True))
        clusters.setdefault(cells["delay"], {})[str(cells["way"])] = estimates[measure]
    return dict(sorted(clusters.items(), key=lambda item: float(item[0])))
