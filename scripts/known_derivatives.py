"""Compare ways to weigh a derivative term, and find from which noise on derivatives harm.

    python scripts/known_derivatives.py balance --out docs/results/balance.csv
    python scripts/known_derivatives.py noise --out docs/results/noise.csv

All runs of a study are trained side by side, as slices of one stacked network: a slice sees what a
run with SobolevCallback would see (a test compares the two). Full batches, two tanh layers of 64,
everything in standardized units; points, first weights and steps are the same for every method.
"""

import argparse
import csv
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev import Balanced, Cosine, SobolevTerm, Standardizer
from lightning_sobolev.functional import LANDSCAPES, landscape

STEPS, LR, LOOK = 2000, 3e-3, 50
METHODS = {
    "none": SobolevTerm(weight=0.0),
    "constant_0.1": SobolevTerm(weight=0.1),
    "constant_1": SobolevTerm(weight=1.0),
    "fading_1": SobolevTerm(weight=Cosine(1.0, 0.0, STEPS)),
    "balanced_0.1": SobolevTerm(weight=Balanced(0.1)),
    "balanced_1": SobolevTerm(weight=Balanced(1.0)),
    "elements_1": SobolevTerm(weight=1.0, normalize="elements"),
}
Points = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One run: ``noise`` is in units of the root mean square of a column of derivatives.

    As many points as it is trained on are held out for validation.
    """

    function: str
    num_points: int
    method: str
    noise: float
    seed: int


class Stack(nn.Module):
    """As many independent networks as there are seeds, each begun as ``nn.Linear`` begins."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        single = {seed: first_weights(seed) for seed in set(seeds)}
        chosen = [single[seed] for seed in seeds]
        self.weights = nn.ParameterList(torch.stack(each) for each in zip(*chosen, strict=True))

    def forward(self, x: Float[Tensor, "runs rows 2"]) -> Float[Tensor, "runs rows"]:
        """Evaluate every network at its own rows."""
        hidden = x
        for place in range(0, len(self.weights), 2):
            hidden = torch.baddbmm(self.weights[place + 1], hidden, self.weights[place].mT)
            hidden = hidden.tanh() if place + 2 < len(self.weights) else hidden
        return hidden[..., 0]


def bare_network(seed: int) -> nn.Sequential:
    """Return one network."""
    torch.manual_seed(seed)
    first, second, last = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


def first_weights(seed: int) -> list[Tensor]:
    """Return weights ``[out, in]`` and biases ``[1, out]`` of one network in turn."""
    found = [parameter.detach() for parameter in bare_network(seed).parameters()]
    return [each if each.ndim == 2 else each[None] for each in found]


def draw_points(function: str, size: int, seed: int) -> Points:
    """Return uniform points of a test function with exact values and gradients."""
    f = landscape(function)
    low, high = torch.tensor(f.bounds(), dtype=torch.float64).T
    unit = torch.rand(size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = low + (high - low) * unit
    return {"x": x, "y": f.value(x), "dydx": f.gradient(x)}


def data_of(cell: Cell) -> tuple[Points, Points, Points]:
    """Return training, validation and test points in the units of the training points."""
    known = draw_points(cell.function, cell.num_points, cell.seed)
    units = Standardizer.fit(known["x"], known["y"])
    generator = torch.Generator().manual_seed(10_000 + cell.seed)
    noise = torch.randn(known["dydx"].shape, generator=generator, dtype=torch.float64)
    size = known["dydx"].square().mean(0).sqrt()
    known["dydx"] = known["dydx"] + cell.noise * size * noise
    held_out = draw_points(cell.function, cell.num_points, 1_000 + cell.seed)
    truth = draw_points(cell.function, 1024, 999_999)
    return (in_units(known, units), in_units(held_out, units), in_units(truth, units))


def in_units(points: Points, units: Standardizer) -> Points:
    """Return standardized points in single precision."""
    changes = {"x": units.inputs, "y": units.targets, "dydx": units.jacobian}
    return {name: change(points[name]).float() for name, change in changes.items()}


def losses(net: Stack, points: Points, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return every run's value loss and its derivative term, unweighted: ``[runs]``."""
    x = points["x"].requires_grad_()
    y = net(x)
    (slopes,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    term = (factors * (slopes - points["dydx"]).square()).sum(2).mean(1)
    return (y - points["y"]).square().mean(1), term


def factors_of(cells: Sequence[Cell], dydx: Tensor) -> Float[Tensor, "runs 1 2"]:
    """Return what each squared error is multiplied by: the term's scale."""
    squares = dydx.square().mean(1, keepdim=True)
    whole = 1.0 / squares.sum(2, keepdim=True).expand_as(squares)
    floor = 1e-4 * squares.mean(2, keepdim=True)
    each = 0.5 / torch.maximum(squares, floor)
    by_element = torch.tensor([METHODS[c.method].normalize == "elements" for c in cells])
    return torch.where(by_element[:, None, None], each, whole)


class Weights:
    """The weight of every run at every step."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._terms = [METHODS[cell.method] for cell in cells]
        balanced = [t.weight if isinstance(t.weight, Balanced) else None for t in self._terms]
        self._ratios = torch.tensor([b.ratio if b is not None else 0.0 for b in balanced])
        self._balanced: Tensor | None = None

    def at(self, step: int, value: Tensor, term: Tensor, net: Stack) -> Float[Tensor, " runs"]:
        """Return the weights; measure the balanced ones where they are due."""
        settings = Balanced()
        if step % settings.every_n_steps == 0:
            norms = [gradients(loss, net).norm(dim=1) for loss in (value, term)]
            found = self._ratios * norms[0] / norms[1]
            old = found if self._balanced is None else self._balanced
            self._balanced = settings.memory * old + (1 - settings.memory) * found
        assert self._balanced is not None
        fixed = torch.tensor([term.weight_at(step) for term in self._terms])
        return torch.where(self._ratios > 0, self._balanced, fixed)


def gradients(loss: Float[Tensor, " runs"], net: Stack) -> Float[Tensor, "runs parameters"]:
    """Return every run's parameter gradient."""
    whole, to = loss.sum(), list(net.weights)
    found = torch.autograd.grad(whole, to, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten(1) for gradient in found], 1)


def stacked(tables: Iterable[Points]) -> Points:
    """Put the points of all runs into one table."""
    listed = list(tables)
    return {name: torch.stack([table[name] for table in listed]) for name in listed[0]}


def train(cells: Sequence[Cell], known: Points, held_out: Points, steps: int) -> tuple[Stack, dict]:
    """Fit all runs; return the networks and what can be seen without the truth."""
    net, weights = Stack([cell.seed for cell in cells]), Weights(cells)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    factors = factors_of(cells, known["dydx"])
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        value, term = losses(net, known, factors)
        if step % LOOK == 0:
            outside = (net(held_out["x"]) - held_out["y"]).square().mean(1)
            pair = [gradients(loss, net) for loss in (outside, term)]
            seen.append((outside.detach(), torch.cosine_similarity(pair[0], pair[1], dim=1)))
        total = value + weights.at(step, value, term, net) * term
        optimizer.zero_grad()
        total.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        final = (net(held_out["x"]) - held_out["y"]).square().mean(1)
    errors, cosines = (torch.stack(each) for each in zip(*seen, strict=True))
    half = len(cosines) // 2
    signs = {
        "validation_mse": final,
        "validation_rise": final / torch.minimum(final, errors.amin(0)),
        "early_cosine": cosines[:half].mean(0),
        "late_cosine": cosines[half:].mean(0),
    }
    return net, signs


def study(cells: Sequence[Cell], steps: int) -> list[dict]:
    """Train cells of one number of points and return their rows."""
    tables = [data_of(cell) for cell in cells]
    known, held_out, truth = (stacked(each) for each in zip(*tables, strict=True))
    net, signs = train(cells, known, held_out, steps)
    x = truth["x"].requires_grad_()
    y = net(x)
    (slopes,) = torch.autograd.grad(y.sum(), x)
    slopes_off = (slopes - truth["dydx"]).square().sum((1, 2))
    columns = {
        "test_value_nmse": (y.detach() - truth["y"]).square().mean(1)
        / truth["y"].var(1, correction=0),
        "test_derivative_nmse": slopes_off / truth["dydx"].square().sum((1, 2)),
        **signs,
    }
    numbers = {name: [float(f"{n:.4g}") for n in each.tolist()] for name, each in columns.items()}
    own = [{name: each[place] for name, each in numbers.items()} for place in range(len(cells))]
    return [{**vars(cell), **row} for cell, row in zip(cells, own, strict=True)]


def cells_of(name: str) -> list[list[Cell]]:
    """Return the cells of a study, those that are trained side by side together."""
    if name == "balance":
        every = list(itertools.product(LANDSCAPES, METHODS, range(5)))
        twenty = [Cell(f, 20, m, 0.0, s) for f, m, s in every]
        return [twenty, [Cell(f, 100, m, 0.0, s) for f, m, s in every if s < 3]]
    seeds = range(3)
    functions, levels = ("booth", "rosenbrock", "styblinski_tang"), (0.0, 0.03, 0.1, 0.3, 1.0)
    plain = itertools.product(functions, ("none",), (0.0,), seeds)
    taught = itertools.product(functions, ("constant_1", "fading_1"), levels, seeds)
    return [[Cell(f, 100, m, level, s) for f, m, level, s in (*plain, *taught)]]


def main() -> None:
    """Run a study and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("balance", "noise"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for cells in cells_of(options.study):
        rows += study(cells, options.steps)
        print(f"{len(rows)} runs", flush=True)
    unfinished = options.out.with_suffix(".tmp")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(options.out)


if __name__ == "__main__":
    main()
