"""Compare ways to weigh a derivative term, and derivatives that are noisy or only estimated.

    python scripts/known_derivatives.py balance --out docs/results/balance.csv
    python scripts/known_derivatives.py noise --out docs/results/noise.csv
    python scripts/known_derivatives.py neighbors --out docs/results/neighbors.csv

All runs of a study are trained side by side, as slices of one stacked network: a slice sees what a
run with SobolevCallback would see (a test compares the two). Full batches, two tanh layers of 64,
everything in standardized units; points, first weights and steps are the same for every method.
"""

import argparse
import itertools
from pathlib import Path

import torch

from lightning_sobolev.functional import LANDSCAPES
from lightning_sobolev.tasks.records import Record, write_csv
from lightning_sobolev.tasks.stacked.cells import DEGREES, METHODS, STEPS, Cell
from lightning_sobolev.tasks.stacked.training import study

FUNCTIONS = ("booth", "rosenbrock", "styblinski_tang")


def balance() -> list[list[Cell]]:
    """Return all functions and methods with exact derivatives, 20 points and 100."""
    every = list(itertools.product(LANDSCAPES, METHODS, range(5)))
    twenty = [Cell(f, 20, m, 0.0, s) for f, m, s in every]
    return [twenty, [Cell(f, 100, m, 0.0, s) for f, m, s in every if s < 3]]


def noise() -> list[list[Cell]]:
    """Return constant and fading weights at several levels of noise."""
    seeds, levels = range(3), (0.0, 0.03, 0.1, 0.3, 1.0)
    plain = itertools.product(FUNCTIONS, ("none",), (0.0,), seeds)
    taught = itertools.product(FUNCTIONS, ("constant_1", "fading_1"), levels, seeds)
    return [[Cell(f, 100, m, level, s) for f, m, level, s in (*plain, *taught)]]


def neighbors() -> list[list[Cell]]:
    """Return derivatives that are estimated from the values beside exact ones and none."""
    seeds, methods = range(3), ("constant_1", "fading_1")
    plain = itertools.product(FUNCTIONS, ("none",), ("exact",), seeds)
    taught = itertools.product(FUNCTIONS, methods, ("exact", *DEGREES), seeds)
    return [[Cell(f, 100, m, 0.0, s, kind) for f, m, kind, s in (*plain, *taught)]]


STUDIES = {"balance": balance, "noise": noise, "neighbors": neighbors}


def main() -> None:
    """Run a study and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Record] = []
    for cells in STUDIES[options.study]():
        rows += study(cells, options.steps)
        print(f"{len(rows)} runs", flush=True)
    write_csv(options.out, list(rows[0]), rows)


if __name__ == "__main__":
    main()
