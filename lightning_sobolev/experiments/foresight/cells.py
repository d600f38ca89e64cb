"""What is learned with and without derivatives: in committed tables, and trained here."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from lightning_sobolev import BatchTeacher, SobolevLoss
from lightning_sobolev.experiments.finance.data import BasketDataModule
from lightning_sobolev.experiments.forces.data import ForcesDataModule
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.standardization import Standardizer

STEPS, BATCH, RATE = 1500, 100, 3e-3
TEST_POINTS, DRAWS = 1000, 3
Labels = tuple[Tensor, Tensor, Tensor]
"""Points, values and Jacobians."""


_ATOMS = {"cu13": 13, "ethanol": 9}


class Cell(NamedTuple):
    """Something to learn, what is foreseen of it, and what came of it.

    Args:
        source: Table of committed results; ``trained``: both networks are trained here.
        problem: What is learned.
        dim: Number of inputs.
        points: Training points; in a game, states that are looked at.
        setting: What else tells it from others.
        draw: Returns the labels of a seed.
        logs: Returns the log ratio of each seed's errors, with derivatives over without.
        twin: What a twin foresaw: the same ratio for validation errors.
    """

    source: str
    problem: str
    dim: int
    points: int
    setting: str
    draw: Callable[[int], Labels]
    logs: Callable[[], "pd.Series[float]"]
    twin: float = math.nan


@dataclass(frozen=True)
class Problem:
    """A function at random points; noise in root mean squares of a column."""

    name: str
    dim: int
    points: int
    level: float = 0.0
    value_noise: float = 0.0
    slope_noise: float = 0.0

    def draw(self, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return training points (``x``, ``y``, ``dydx``) and test points, standardized."""
        generator = torch.Generator().manual_seed(seed)
        if self.name in ("ripples", "diffusion"):
            table, test = self._mapped(generator)
        else:
            data = LandscapeDataModule(
                self.name, self.points, dim=self.dim, seed=seed, num_test_points=TEST_POINTS,
                dtype=torch.float64,
            )  # fmt: skip
            table, test = dict(data.train_points.columns), data.test_points().columns
        for key, share in (("y", self.value_noise), ("dydx", self.slope_noise)):
            noise = torch.randn(table[key].shape, generator=generator, dtype=torch.float64)
            table[key] = table[key] + share * table[key].square().mean(0).sqrt() * noise
        return table, test

    def labels(self, seed: int) -> Labels:
        """Return training points, values and Jacobians."""
        table = self.draw(seed)[0]
        return table["x"], table["y"], table["dydx"]

    def _mapped(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        count, even = self.points + TEST_POINTS, self.name == "ripples"
        function = partial(_ripples if even else _diffusion, self.level)
        drawn = torch.rand if even else torch.randn
        x = drawn(count, self.dim, generator=generator, dtype=torch.float64)
        x = 2 * x - 1 if even else x
        y, dydx = vmap(function)(x), vmap(jacrev(function), chunk_size=64)(x)
        units = Standardizer.fit(x[: self.points], y[: self.points])
        columns = {"x": units.inputs(x), "y": units.targets(y), "dydx": units.jacobian(dydx)}
        test = {key: column[self.points :] for key, column in columns.items()}
        return {key: column[: self.points] for key, column in columns.items()}, test

    def error(self, seed: int, matches: bool) -> float:
        """Return the normalized test error of a tanh network, trained with derivatives or not."""
        table, test = ({k: v.float() for k, v in own.items()} for own in self.draw(seed))
        outputs = None if table["y"].ndim == 1 else table["y"].shape[1]
        torch.manual_seed(seed)
        net = mlp(self.dim, outputs, width=64, activation="tanh")
        loss_fn = SobolevLoss(BatchTeacher(jacobian="dydx"), seed=seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        generator, order = torch.Generator().manual_seed(seed), torch.zeros(0, dtype=torch.long)
        for _ in range(STEPS):
            if not len(order):
                order = torch.randperm(self.points, generator=generator)
            batch = {key: column[order[:BATCH]] for key, column in table.items()}
            order = order[BATCH:]
            with loss_fn.observe(net) if matches else torch.enable_grad():
                loss = (net(batch["x"]) - batch["y"]).square().mean()
            loss = loss + loss_fn(batch=batch).loss if matches else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float((net(test["x"]) - test["y"]).square().mean() / test["y"].var())


def _ripples(frequency: float, x: Tensor) -> Tensor:
    """A bowl with ripples of a third of its height along every axis."""
    return x.square().mean() + x.mean() + 0.3 * torch.sin(frequency * x).mean()


def _diffusion(amplitude: float, z: Tensor) -> Tensor:
    """Solve -(e^a u')' = 1, u = 0 at both ends; z are the coefficients of a's first cosines."""
    at = (torch.arange(33, dtype=z.dtype) + 0.5) / 33
    order = torch.arange(1, len(z) + 1, dtype=z.dtype)
    flow = torch.exp(amplitude * (torch.cos(math.pi * order * at[:, None]) / order) @ z) * 33**2
    beside = torch.diag(flow[1:-1], 1)
    matrix = torch.diag(flow[1:] + flow[:-1]) - beside - beside.T
    found: Tensor = torch.linalg.solve(matrix, torch.ones(32, dtype=z.dtype))
    return found[3::4]


def problems() -> Iterator[Problem]:
    """Yield those that are trained here."""
    for frequency in (2.0, 5.0, 10.0, 20.0, 40.0):
        for dim, points in ((2, 30), (2, 300), (6, 100), (6, 1000)):
            yield Problem("ripples", dim, points, level=frequency)
    for name in ("booth", "styblinski_tang", "ackley"):
        for noise in (0.1, 0.5, 2.0):
            yield Problem(name, 2, 100, value_noise=noise)
            yield Problem(name, 2, 100, slope_noise=noise)
    for level in (0.3, 1.0, 2.0):
        for points in (30, 300):
            yield Problem("diffusion", 16, points, level=level)
    many = (100, 300, 1000, 3000)
    for dim, counts in ((5, (100, 1000)), (10, many), (20, (100, 1000)), (50, many)):
        for name in ("griewank", "rosenbrock", "ackley", "styblinski_tang"):
            for points in counts:
                yield Problem(name, dim, points)


def cells(results: Path, frames: Path) -> Iterator[Cell]:
    """Yield what is trained here, then what is committed in the tables of a folder."""
    for problem in problems():
        rest = list(asdict(problem).items())[3:]
        setting = " ".join(f"{key} {value:g}" for key, value in rest if value)
        place = ("trained", problem.name, problem.dim, problem.points, setting)
        yield Cell(*place, problem.labels, partial(_trained, problem))
    keys = ["function", "dim", "num_points", "activation", "optimizer"]
    regression = _table(results, "regression").query("order < 2")
    for (name, dim, points, *how), logs in _pairs(regression, keys, "test_value_nmse"):
        place = ("regression", name, dim, points, " ".join(how))
        yield Cell(*place, Problem(name, dim, points).labels, logs.copy)
    yield from _with_twins("balance", _table(results, "balance"))
    yield from _with_twins("noise", _table(results, "noise"))
    for (market, count), logs in _pairs(
        _table(results, "finance"), ["market", "num_samples"], "test_price_rmse"
    ):
        place = ("finance", market, 7, count, "")
        yield Cell(*place, partial(_basket, market, count), logs.copy)
    forces, keys = _table(results, "forces"), ["system", "num_frames"]
    for weight in (0.0, 0.01):
        own = forces.query(f"sobolev == 'none' or energy_weight == {weight}")
        for (system, count), logs in _pairs(own, keys, "test_energy_mae"):
            place = ("forces", system, 3 * _ATOMS[system], count, f"energy_weight {weight:g}")
            yield Cell(*place, partial(_frames, system, count, frames), logs.copy)
    atari = _table(results, "atari").query("fraction < 0.02 and where != 'queries'")
    matched = atari["where"].map({"values": "none", "stored": "order1"})
    for (game,), logs in _pairs(atari.assign(sobolev=matched), ["game"], "test_kl"):
        place = ("atari", game, 4 * 84 * 84, 256, "small student, 1/64 of the states")
        yield Cell(*place, partial(_played, game), logs.copy)


def _table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


def _trained(problem: Problem) -> "pd.Series[float]":
    ratios = [problem.error(s, True) / problem.error(s, False) for s in range(DRAWS)]
    return np.log(pd.Series(ratios))


def _pairs(
    frame: pd.DataFrame, keys: list[str], error: str
) -> Iterator[tuple[tuple[Any, ...], "pd.Series[float]"]]:
    frame = frame.assign(plain=frame["sobolev"] == "none")
    for key, own in frame.groupby(keys, sort=False):
        errors = own.pivot_table(index="seed", columns="plain", values=error)
        if errors.shape[1] == 2:
            yield key, np.log(errors[False] / errors[True]).dropna()


def _with_twins(source: str, frame: pd.DataFrame) -> Iterator[Cell]:
    place = ["function", "num_points"]
    columns = ["test_value_nmse", "validation_mse"]
    plain = frame[frame["method"] == "none"].set_index([*place, "seed"])[columns]
    taught = frame[frame["method"] == "constant_1"]
    for (name, points, noise), own in taught.groupby([*place, "noise"], sort=False):
        logs = np.log(own.set_index([*place, "seed"])[columns] / plain).dropna()
        draw = Problem(name, 2, points, slope_noise=noise).labels
        setting = f"slope_noise {noise:g}" if noise else ""
        test, validation = (logs[column] for column in columns)
        twin = float(np.exp(validation.mean()))
        yield Cell(source, name, 2, points, setting, draw, test.copy, twin)


def _basket(market: Any, count: int, seed: int) -> Labels:
    data = BasketDataModule(market, count, seed=seed, dtype=torch.float64)
    table = data.training_points().columns
    return table["x"], table["y"], table["dydx"]


def _frames(system: str, count: int, root: Path, seed: int) -> Labels:
    table = ForcesDataModule(system, count, root=root, seed=seed).training_points().columns
    return table["positions"], table["energy"], table["gradient"]


def _played(game: str, seed: int) -> Labels:
    """Let the packaged agent play eight games for 100 steps; return the last 32 of each."""
    from lightning_sobolev import atari

    network, rng = atari.load_agent(game)[0], np.random.default_rng(seed)
    environments, seen = atari.Environments(atari.AtariSettings(game), seed), []
    stacks = environments.reset()
    for _ in range(100):
        seen.append(stacks)
        actions = atari.choose(atari.log_probabilities(network, stacks), rng)
        stacks = environments.step(actions).stacks
    x = atari.scale_pixels(torch.as_tensor(np.concatenate(seen[-32:])))
    answer = lambda one: torch.log_softmax(network(one[None])[0], -1)  # noqa: E731
    return x, vmap(answer)(x).detach(), vmap(jacrev(answer), chunk_size=16)(x).detach()
