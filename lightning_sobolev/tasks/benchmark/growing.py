"""How the time of a step grows with batch, width, outputs and projections."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lightning_sobolev._files import write_json
from lightning_sobolev.tasks.benchmark import rivals
from lightning_sobolev.tasks.benchmark.measuring import Contestant, alternate
from lightning_sobolev.tasks.benchmark.methods import Built, ours
from lightning_sobolev.tasks.benchmark.workloads import Workload, perceptron

SIZES = {
    "batch": (250, 1000, 4000, 16000),
    "width": (64, 128, 256, 512),
    "outputs": (1, 8, 64, 512),
    "projections": (1, 2, 4, 8),
}
_BATCH = 2000


def measure_growth(path: Path, cfg: Any) -> None:
    """Measure a multilayer perceptron of growing size and write the points.

    Args:
        path: A JSON file; left alone if it is there, unless ``cfg.fresh``.
        cfg: Has ``accelerator``, ``clock``, ``rounds``, ``seconds`` and ``fresh``.
    """
    if path.is_file() and not cfg.fresh:
        return
    found = []
    for axis, sizes in SIZES.items():
        contestants = {}
        for size in sizes:
            for method in ("plain", "callback"):
                workload, built = _built(axis, size, method)
                contestants[f"{method} {size}"] = Contestant(
                    workload, built, accelerator=cfg.accelerator, clock=cfg.clock
                )
        times = alternate(contestants, rounds=max(3, cfg.rounds // 2), seconds=cfg.seconds / 2)
        for method in ("plain", "callback"):
            seconds = [median(times[f"{method} {size}"]) for size in sizes]
            exponent = fitted_exponent(sizes, seconds)
            found.append(
                {
                    "axis": axis,
                    "method": method,
                    "sizes": list(sizes),
                    "seconds": seconds,
                    "exponent": exponent,
                }
            )
    write_json(path, found)


def read_growth(path: Path) -> list[dict[str, Any]]:
    """Read the points, or nothing where there are none."""
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return found


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of the straight line through the logarithms, by least squares.

    Args:
        sizes: At least two different ones.
        seconds: Time for each.
    """
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def _built(axis: str, size: int, method: str) -> tuple[Workload, Built]:
    workload = perceptron(
        size if axis == "batch" else _BATCH,
        width=size if axis == "width" else 256,
        outputs=size if axis == "outputs" else 8,
    )
    if method == "plain":
        return workload, (rivals.ByHand(workload, rivals.plain, only_parameters=True), [])
    return workload, ours(workload, projections=size if axis == "projections" else 1)
