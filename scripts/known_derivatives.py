"""Compare ways to weigh a derivative term, and find from which noise on derivatives harm.

    python scripts/known_derivatives.py balance --out docs/results/balance.csv
    python scripts/known_derivatives.py noise --out docs/results/noise.csv

A plain loop over the package's objective: small networks, full batches, everything in
standardized units, the same points, steps and seeds for every method.
"""

import argparse
import csv
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from lightning_sobolev import Balanced, Cosine, SobolevTerm, Standardizer
from lightning_sobolev.balance import RunningBalance
from lightning_sobolev.draws import Draws
from lightning_sobolev.functional import LANDSCAPES, landscape, tape_jet
from lightning_sobolev.objective import RunningScales, match, reduced, weighted_sum
from lightning_sobolev.teachers import TabulatedJet

STEPS = 2000
METHODS: Mapping[str, SobolevTerm | None] = {
    "none": None,
    "constant_0.1": SobolevTerm(weight=0.1),
    "constant_1": SobolevTerm(weight=1.0),
    "fading_1": SobolevTerm(weight=Cosine(1.0, 0.0, STEPS)),
    "balanced_1": SobolevTerm(weight=Balanced()),
    "elements_1": SobolevTerm(weight=1.0, normalize="elements"),
}
Points = dict[str, Tensor]


def draw_points(function: str, size: int, seed: int) -> Points:
    """Return uniform points of a test function with exact values and gradients."""
    f = landscape(function)
    low, high = torch.tensor(f.bounds(), dtype=torch.float64).T
    unit = torch.rand(size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = low + (high - low) * unit
    return {"x": x, "y": f.value(x), "dydx": f.gradient(x)}


def in_units(points: Points, units: Standardizer) -> Points:
    """Return standardized points in single precision."""
    columns = {
        "x": units.inputs(points["x"]),
        "y": units.targets(points["y"]),
        "dydx": units.jacobian(points["dydx"]),
    }
    return {name: column.float() for name, column in columns.items()}


def with_noise(points: Points, level: float, seed: int) -> Points:
    """Add to every derivative noise of ``level`` times the root mean square of its column."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    dydx = points["dydx"]
    noise = torch.randn(dydx.shape, generator=generator, dtype=dydx.dtype)
    return {**points, "dydx": dydx + level * dydx.square().mean(0).sqrt() * noise}


class Network(nn.Module):
    """Two tanh layers of 64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch]``."""
        values: Tensor = self.layers(x)
        return values[:, 0]


def train(
    method: str, points: Points, held_out: Points, seed: int, steps: int = STEPS
) -> tuple[Network, dict[str, float]]:
    """Fit a network; say what can be seen during the run without the truth."""
    net, term = Network(seed), METHODS[method]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scales, balance = RunningScales(), RunningBalance()
    history: list[tuple[float, float]] = []
    for step in range(steps):
        jet = tape_jet(net, points["x"], create_graph=True)
        loss = mse_loss(jet.value, points["y"])
        if term is not None:
            target = TabulatedJet((2,), jacobian=points["dydx"])
            draws = Draws(seed, 0, step).cotangents(0, term, jet.value)
            parts = {term.key: reduced(term, match(term, jet, target, cotangents=draws), scales)}
            if step % 50 == 0:
                history.append(alignment(net, parts[term.key], held_out))
            parameters = list(net.parameters())
            weights = balance.weights(parts, [term], step, loss, parameters)
            loss = loss + weighted_sum(parts, weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        final = float(mse_loss(net(held_out["x"]), held_out["y"]))
    half = len(history) // 2
    early, late = (sum(c for _, c in part) for part in (history[:half], history[half:]))
    seen = {
        "validation_mse": final,
        "validation_rise": final / min([final, *(value for value, _ in history)]),
        "early_cosine": early / max(half, 1),
        "late_cosine": late / max(len(history) - half, 1),
    }
    return net, seen


def alignment(net: Network, term: Tensor, held_out: Points) -> tuple[float, float]:
    """Return a held-out value loss, and the cosine of its gradient to that of the term."""
    value = mse_loss(net(held_out["x"]), held_out["y"])
    parameters = list(net.parameters())
    flat = []
    for loss in (value, term):
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        flat.append(torch.cat([gradient.flatten() for gradient in found]))
    return float(value.detach()), float(cosine_similarity(flat[0], flat[1], dim=0))


def judged(net: Network, truth: Points) -> dict[str, float]:
    """Return normalized squared errors of value and derivative."""
    jet = tape_jet(net, truth["x"])
    slopes = jet.vjp(torch.ones_like(jet.value)[None])[0].detach()
    value = mse_loss(jet.value.detach(), truth["y"]) / truth["y"].var(correction=0)
    derivative = (slopes - truth["dydx"]).square().sum() / truth["dydx"].square().sum()
    return {"test_value_nmse": float(value), "test_derivative_nmse": float(derivative)}


def run(function: str, size: int, method: str, noise: float, seed: int, steps: int) -> dict:
    """Train one cell and return its row."""
    points = draw_points(function, size, seed)
    units = Standardizer.fit(points["x"], points["y"])
    known = in_units(with_noise(points, noise, seed), units)
    held_out = in_units(draw_points(function, size, 1_000 + seed), units)
    net, seen = train(method, known, held_out, seed, steps)
    truth = in_units(draw_points(function, 4096, 999_999), units)
    cell = {"function": function, "num_points": size, "method": method, "noise": noise}
    return {**cell, "seed": seed, **judged(net, truth), **seen}


def cells(study: str) -> Iterable[tuple[str, int, str, float, int]]:
    """Return what is compared: function, points, method, noise, seed."""
    if study == "balance":
        return itertools.product(LANDSCAPES, (20, 100), METHODS, (0.0,), range(3))
    functions = ("booth", "rosenbrock", "styblinski_tang")
    plain = itertools.product(functions, (100,), ("none",), (0.0,), range(3))
    methods, levels = ("constant_1", "fading_1"), (0.0, 0.03, 0.1, 0.3, 1.0)
    return [*plain, *itertools.product(functions, (100,), methods, levels, range(3))]


def main() -> None:
    """Run a study and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("balance", "noise"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--points", type=int, help="only cells with this number of points")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for cell in cells(options.study):
        if options.points in (None, cell[1]):
            rows.append(run(*cell, options.steps))
            print(rows[-1], flush=True)
    unfinished = options.out.with_suffix(".tmp")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(options.out)


if __name__ == "__main__":
    main()
