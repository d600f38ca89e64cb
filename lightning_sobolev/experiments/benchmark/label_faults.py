"""How often the doctor for labels finds a fault that was put in, and how often one that was not."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._files import whole, write_text
from lightning_sobolev._progress import progress_bar
from lightning_sobolev.doctor import examine_labels
from lightning_sobolev.experiments.finance.baskets import BasketCall
from lightning_sobolev.experiments.regression.landscapes import landscape

FINDINGS = ("right", "noise", "unknown", "sign", "unit", "transposed", "shifted")
_FAULTS = FINDINGS[3:]
_PAYOFFS = "basket_payoffs"
_SCALAR = ("right", "sign", "unit", "shifted", "noise")
_VECTOR = ("right", "transposed")
_Sample = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Cell:
    """Draws of points of one function, all labeled alike; ``map`` is its value or its gradient."""

    function: str
    map: str
    inputs: int
    points: int
    labels: str


def sample(cell: Cell, seed: int) -> _Sample:
    """Draw points with values and right labels."""
    generator = torch.Generator().manual_seed(seed)
    if cell.function == _PAYOFFS:
        basket = BasketCall.drawn("bachelier", cell.inputs, seed=seed)
        states = basket.states(cell.points, generator)
        return states, *basket.payoffs(states, generator)
    function = landscape(cell.function)
    width = cell.inputs if function.dim is None else function.dim
    low, high = torch.tensor(function.bounds(width), dtype=torch.float64).T
    count = cell.inputs // width
    unit = torch.rand(cell.points * count, width, generator=generator, dtype=torch.float64)
    x = low + (high - low) * unit
    value, gradient, hessian = function.derivatives(x)
    rows = (cell.points, cell.inputs)
    if cell.map == "value":
        return x.reshape(rows), value.reshape(-1, count).sum(1), gradient.reshape(rows)
    blocks = hessian.reshape(-1, count, width, width)
    jacobian = torch.stack([torch.block_diag(*row) for row in blocks])  # type: ignore[no-untyped-call]
    # Of a gradient alone it is symmetric: transposed it would be as right as before.
    normal = torch.randn(cell.inputs, cell.inputs, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(normal).Q
    return x.reshape(rows), gradient.reshape(rows) @ rotation.T, rotation @ jacobian


def mislabeled(jacobian: Tensor, labels: str, seed: int) -> Tensor:
    """Put a fault into right labels."""
    generator = torch.Generator().manual_seed(seed + 2**20)
    noise = torch.randn(jacobian.shape, generator=generator, dtype=jacobian.dtype)
    return {
        "right": lambda: jacobian,
        "sign": lambda: -jacobian,
        "unit": lambda: 100.0 * jacobian,
        "shifted": lambda: jacobian.roll(1, 0),
        "noise": lambda: jacobian + 0.3 * jacobian.std() * noise,
        "transposed": lambda: jacobian.mT,
    }[labels]()


def measure(cell: Cell, draws: int) -> dict[str, int]:
    """Count what is found over draws of points."""
    counts: Counter[str] = Counter()
    for seed in range(draws):
        x, y, jacobian = sample(cell, seed)
        counts[examine_labels(x, y, mislabeled(jacobian, cell.labels, seed)).finding] += 1
    return {"draws": draws} | {finding: counts[finding] for finding in FINDINGS}


def run_label_faults(cfg: DictConfig) -> Path:
    """Measure every cell of the configuration; write rows after each, and their tables."""
    for inputs in cfg.inputs:
        require(inputs % 2 == 0, "inputs", "even numbers: some functions are of two", inputs)
    torch.set_num_threads(1)
    path, cells = Path(cfg.out) / "label_faults.csv", list(_cells(cfg))
    done = {} if cfg.fresh or not path.is_file() else _read(path)
    rows: list[dict[str, Any]] = []
    with progress_bar("labels", len(cells), enabled=cfg.progress is not False) as advance:
        for cell in cells:
            draws = cfg.draws if cell.labels == "right" else cfg.draws_of_faults
            known = done.get((*astuple(cell), draws))
            rows.append(known or asdict(cell) | measure(cell, draws))
            with whole(path) as writing:
                pd.DataFrame(rows).to_csv(writing, index=False)
            advance(1, " ".join(map(str, astuple(cell))))
    return write_tables(path.with_suffix(".md"), pd.DataFrame(rows), cfg)


def _read(path: Path) -> dict[tuple[Any, ...], dict[Any, Any]]:
    keys = [*Cell.__dataclass_fields__, "draws"]
    records = pd.read_csv(path).to_dict("records")
    return {tuple(record[key] for key in keys): record for record in records}


def _cells(cfg: DictConfig) -> Iterator[Cell]:
    for inputs, points in product(cfg.inputs, cfg.points):
        for function in cfg.functions:
            yield from (Cell(function, "value", inputs, points, one) for one in _SCALAR)
            yield from (Cell(function, "gradient", inputs, points, one) for one in _VECTOR)
    for inputs, points, labels in product(cfg.inputs, cfg.payoffs, _SCALAR[:3]):
        yield Cell(_PAYOFFS, "value", inputs, points, labels)


_INTRO = """# Faults of labels

Made by `python scripts/benchmark.py study=labels`; `conf/study/labels.yaml` lists what can be set.
Points are uniform in the domain of each function; a function of two inputs is summed over pairs of
them. In percent of {0.draws} draws (right labels) or {0.draws_of_faults} (others).
*False alarms*: any fault is named of right labels. *sign, unit, shifted*: that fault is named where
labels are negated, multiplied by 100, or those of the row above; in brackets: another fault is.
*noise*: noise is named where normal noise of 30 % of the labels' deviation is added; in brackets:
where there is none. *transposed*: of the gradient as a map, its outputs rotated.
"""
_PAYOFF_INTRO = """## Payoffs of a basket call

Simulated payoffs and pathwise derivatives, one path a state: right labels of values that are almost
all noise. In percent of draws: a fault is named of right labels, of negated ones, of those times
100.
"""


def write_tables(path: Path, frame: pd.DataFrame, cfg: Any) -> Path:
    """Write a table for each number of points and inputs, and one of payoffs."""
    parts, is_payoff = [_INTRO.format(cfg)], frame["function"] == _PAYOFFS
    for (inputs, points), own in frame[~is_payoff].groupby(["inputs", "points"], sort=False):
        parts += [f"## {inputs} inputs, {points} points\n"]
        shown = {str(name): _row(rows) for name, rows in own.groupby("function", sort=False)}
        parts += [_markdown(pd.DataFrame(shown).T, "function")]
    shown = {}
    for (inputs, points), own in frame[is_payoff].groupby(["inputs", "points"], sort=False):
        rates = {rows["labels"]: _share(rows, _FAULTS) for _, rows in own.iterrows()}
        shown[f"{inputs} assets, {points} payoffs"] = rates
    parts += [_PAYOFF_INTRO, _markdown(pd.DataFrame(shown).T, "data")] if shown else []
    write_text(path, "\n".join(parts))
    return path


def _row(own: pd.DataFrame) -> dict[str, str]:
    cells = {(row["map"], row["labels"]): row for _, row in own.iterrows()}
    right, mapped = cells["value", "right"], cells["gradient", "right"]
    shown = {"false alarms": _share(right, _FAULTS)}
    for fault in ("sign", "unit", "shifted"):
        shown[fault] = _named(cells["value", fault], fault)
    noise = _share(cells["value", "noise"], ("noise",))
    shown["noise"] = f"{noise} ({_share(right, ('noise',))})"
    shown["false alarms (map)"] = _share(mapped, _FAULTS)
    return shown | {"transposed": _named(cells["gradient", "transposed"], "transposed")}


def _named(row: Any, fault: str) -> str:
    others = _share(row, [other for other in _FAULTS if other != fault])
    return _share(row, (fault,)) + ("" if others == "0" else f" ({others})")


def _share(row: Any, findings: Any) -> str:
    return f"{100 * sum(row[finding] for finding in findings) / row['draws']:.0f}"


def _markdown(frame: pd.DataFrame, index: str) -> str:
    named = frame.rename_axis(index).reset_index()
    return str(named.to_markdown(index=False, disable_numparse=True)) + "\n"
