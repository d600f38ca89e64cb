"""The table at the end of a run: student, teacher, and what was matched."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

_ERROR = "_standard_error"


def summary_table(cfg: DictConfig, metrics: Mapping[str, float | str]) -> Table:
    """Return the numbers of the test, the student's beside the teacher's."""
    table = Table(title=f"{cfg.name}, seed {cfg.seed}", title_justify="left")
    nets = ["student", "teacher"] if cfg.get("teacher") is not None else ["network"]
    table.add_column("test")
    for name in nets:
        table.add_column(name, justify="right")
    numbers = {
        key.removeprefix("test/"): value
        for key, value in metrics.items()
        if key.startswith("test/") and not isinstance(value, str)
    }
    for name in numbers:
        if name.endswith(_ERROR) or name.startswith("teacher_"):
            continue
        bare = name.removeprefix("student_")
        # A comparison with the teacher has a fixed value at the teacher itself.
        exact = "" if bare != name else ("1" if name.endswith("cosine") else "0")
        cells = (_with_error(numbers, name), _with_error(numbers, f"teacher_{bare}", exact))
        table.add_row(bare, *cells[: len(nets)])
    return table


def matched(cfg: DictConfig) -> str:
    """Say in one line what the student was taught."""
    if cfg.sobolev.callback is None:
        return f"matched: {cfg.matched}"
    spec = cfg.sobolev.callback.spec
    # a function is called by its name alone
    of = spec.on if isinstance(spec.on, str) else str(spec.on["_target_"]).rpartition(".")[-1]
    terms = [f"{_term(term)} of {of}" for term in spec.terms]
    return "matched: " + "; ".join(["values", *terms])


def _term(term: Mapping[str, Any]) -> str:
    count = term["num_projections"]
    which = "every direction" if count is None else f"{count} {term['projection']} direction(s)"
    weight = term["weight"]
    if isinstance(weight, Mapping) and {"start", "end"} <= set(weight):
        weight = f"{weight['start']:g} to {weight['end']:g}"
    return f"order {term['order']} ({which}, weight {weight})"


def _with_error(numbers: Mapping[str, float | str], name: str, missing: str = "") -> str:
    if name not in numbers:
        return missing
    shown = f"{numbers[name]:.4g}"
    # One episode, or one run, has no error.
    error = float(numbers.get(name + _ERROR, math.nan))
    return shown if math.isnan(error) else f"{shown} +- {error:.2g}"
