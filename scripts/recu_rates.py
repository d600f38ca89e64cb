"""Measure the explicit ReCU networks: ``python scripts/recu_rates.py --out docs/results``.

Writes ``recu_rates.csv``, ``.md`` and ``.png``: the error of the network that
``lightning_sobolev.recu.approximate`` builds, in several norms of time and space, over its weights
that are not zero; and how second moments travel through layers under three beginnings.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from lightning_sobolev._files import write_text
from lightning_sobolev.functional import TimeSpaceNorm, gauss_legendre, mixed_derivatives
from lightning_sobolev.functional.evolutions import heat
from lightning_sobolev.recu import ReCU, approximate, num_weights, scale_by_sample
from lightning_sobolev.tasks.records import Record, write_csv
from lightning_sobolev.tasks.tables import MeanAndError, line_of

# Norm by name, with the total order of its highest derivative.
NORMS = {
    "L2(L2)": (TimeSpaceNorm(), 0),
    "H1": (TimeSpaceNorm(time_order=1, space_order=1, total_order=1), 1),
    "W1,4(L2)": (TimeSpaceNorm(time_order=1, time_exponent=4.0), 1),
    "L2(H2)": (TimeSpaceNorm(space_order=2), 2),
    "H1(H1)": (TimeSpaceNorm(time_order=1, space_order=1), 2),
}
BEGINNINGS = ("torch's", "variance 2 / (15 n)", "scale_by_sample")
LAYERS, WIDTH, NETWORKS = 4, 64, 20


def errors(degrees: list[int], cells: list[int]) -> Iterator[Record]:
    """Build networks for the two modes of the heat equation and measure their relative errors."""
    evolution = heat()
    indices = sorted({index for norm, _ in NORMS.values() for index in norm.indices()})
    for degree in degrees:
        for count in cells:
            net = approximate(evolution.value, evolution.box, count, degree=degree)
            grid = gauss_legendre(evolution.box, 2, panels=count)
            with torch.no_grad():
                fitted = nn.Sequential(net, nn.Flatten(0))
                found = mixed_derivatives(fitted, grid.points, indices)
                target = mixed_derivatives(evolution.value, grid.points, indices)
            record: Record = {"degree": degree, "cells": count, "weights": num_weights(net)}
            for name, (norm, _) in NORMS.items():
                record[name] = float(norm.loss(found, target, grid).sqrt())
            print(record, flush=True)
            yield record


def slope(records: list[Record], name: str) -> float:
    """Fit log error = slope * log weights + constant to the three largest networks."""
    x = torch.tensor([math.log(float(r["weights"])) for r in records[-3:]])
    y = torch.tensor([math.log(float(r[name])) for r in records[-3:]])
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def moments(beginning: str, seed: int) -> list[float]:
    """Return log10 of the mean square of what every linear layer gives on normal inputs."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(WIDTH, WIDTH, dtype=torch.float64), ReCU()]
    net, x = nn.Sequential(*layers), torch.randn(1024, WIDTH, dtype=torch.float64)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        if beginning == BEGINNINGS[1]:
            for number, layer in enumerate(linear):
                second = 1.0 if number == 0 else 7.5
                nn.init.normal_(layer.weight, std=(second * WIDTH) ** -0.5)
                nn.init.zeros_(layer.bias)
        if beginning == BEGINNINGS[2]:
            scale_by_sample(net, torch.randn(1024, WIDTH, dtype=torch.float64))
        found = []
        for module in net:
            x = module(x)
            if isinstance(module, nn.Linear):
                found.append(float(x.square().mean().log10()))
    return found


def write(path: Path, records: list[Record]) -> None:
    """Write the averages, whole or not at all."""
    lines = ["# recu_rates", "", "Made by `python scripts/recu_rates.py --out docs/results`.", ""]
    lines += [
        "Slope of log error over log weights, three largest networks; in brackets the bound",
        "-(degree + 1 - s) / 2, s the total order of the norm's highest derivative.",
        "",
    ]
    lines += _slopes(records)
    lines += [
        "",
        f"log10 of the mean square behind each of {LAYERS} linear layers of {WIDTH} units, "
        f"mean ± standard error over {NETWORKS} networks, on inputs not used to scale.",
        "",
    ]
    write_text(path, "\n".join([*lines, *_scales()]) + "\n")


def _slopes(records: list[Record]) -> list[str]:
    lines = [line_of(["degree", *NORMS]), line_of(["---"] * (1 + len(NORMS)))]
    for degree in sorted({int(r["degree"]) for r in records}):
        chosen = [r for r in records if r["degree"] == degree]
        cells = [
            f"{slope(chosen, name):.2f} ({-(degree + 1 - s) / 2:g})"
            for name, (_, s) in NORMS.items()
        ]
        lines.append(line_of([str(degree), *cells]))
    return lines


def _scales() -> list[str]:
    header = ["beginning", *map(str, range(1, LAYERS + 1))]
    lines = [line_of(header), line_of(["---"] * len(header))]
    for beginning in BEGINNINGS:
        runs = [moments(beginning, seed) for seed in range(NETWORKS)]
        cells = [str(MeanAndError.of(column)) for column in zip(*runs, strict=True)]
        lines.append(line_of([beginning, *cells]))
    return lines


def draw(path: Path, records: list[Record]) -> None:
    """Draw errors over weights, a panel for every degree."""
    from matplotlib.figure import Figure

    degrees = sorted({int(r["degree"]) for r in records})
    figure = Figure(figsize=(3.6 * len(degrees), 3.4), layout="constrained")
    for axes, degree in zip(figure.subplots(1, len(degrees), sharey=True), degrees, strict=True):
        chosen = [r for r in records if r["degree"] == degree]
        for name in NORMS:
            weights = [float(r["weights"]) for r in chosen]
            axes.loglog(weights, [float(r[name]) for r in chosen], "o-", markersize=3, label=name)
        axes.set(title=f"local polynomials of degree {degree}", xlabel="weights that are not zero")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("relative error")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read the command line and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cells", type=int, nargs="+", default=[4, 6, 8, 12, 16])
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    given.out.mkdir(parents=True, exist_ok=True)
    records = list(errors(given.degrees, given.cells))
    write_csv(given.out / "recu_rates.csv", list(records[0]), records)
    write(given.out / "recu_rates.md", records)
    draw(given.out / "recu_rates.png", records)


if __name__ == "__main__":
    main()
