"""Compares what near pairs of points foresee with what training shows: derivatives help or harm."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from lightning_sobolev import foresight
from lightning_sobolev._files import whole, write_text
from lightning_sobolev.doctor.foresight import FAR
from lightning_sobolev.experiments.common import figures
from lightning_sobolev.experiments.foresight.cells import DRAWS, Cell, cells

log = logging.getLogger(__name__)

CLEAR = 1.1
"""Ratio of errors from which on a difference is one."""
_KEYS = ["source", "problem", "dim", "points", "setting"]
_SCORES = {"F": "first_order", "T": "both_ends", "error": "error", "noise": "noise"}
_ACTIVATIONS = {
    "trained": "tanh", "balance": "tanh", "noise": "tanh", "finance": "softplus",
    "forces": "silu", "atari": "relu",
}  # fmt: skip
"""Of the networks of each source; the regression tables say theirs."""
_SHOWN = [*_KEYS, "F", "T", "ratio"]


def run_foresight(cfg: DictConfig) -> Path:
    """Measure what is missing in ``foresight.csv``; write it, its summary and the figure."""
    torch.set_num_threads(1)
    path = Path(cfg.out) / "foresight.csv"
    rows: list[dict[str, Any]] = []
    if path.is_file() and not cfg.fresh:
        rows = _read(path).to_dict("records")
    done = {tuple(row[key] for key in _KEYS) for row in rows}
    for cell in cells(Path(cfg.results), Path(cfg.frames)):
        if cell[: len(_KEYS)] in done:
            continue
        rows.append(measure(cell))
        log.info("%s", rows[-1])
        with whole(path) as writing:
            pd.DataFrame(rows).to_csv(writing, index=False, float_format="%.4g")
    frame = _read(path)
    write_text(path.with_suffix(".md"), summary(frame))
    _draw(frame, path.with_name("foresight_roc.png"))
    return path


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values={"twin": [""]})


def measure(cell: Cell) -> dict[str, Any]:
    """Return a row: medians of what is foreseen at the points of the seeds, and the outcome."""
    found = [foresight(*cell.draw(seed)) for seed in range(DRAWS)]
    scores = {
        key: float(np.median([getattr(one, name) for one in found]))
        for key, name in _SCORES.items()
    }
    logs = cell.logs()
    mean, scatter = float(logs.mean()), float(logs.sem())
    is_clear = abs(mean) > max(scatter, np.log(CLEAR))
    outcome = ("harmed" if mean > 0 else "helped") if is_clear else "level"
    own = _ACTIVATIONS.get(cell.source) or cell.setting.partition(" ")[0]
    end = {"ratio": np.exp(mean), "scatter": scatter, "harmed": outcome == "harmed"}
    end |= {"outcome": outcome, "twin": cell.twin}
    place: dict[str, Any] = dict(zip(_KEYS, cell, strict=False))
    setting = place.pop("setting")
    return {**place, "activation": own, "setting": setting, **scores, **end}


def score(frame: pd.DataFrame) -> "pd.Series[float]":
    """Return one number for a threshold: negative where ``Foresight.harms``."""
    return np.minimum(frame["T"] + frame["error"], 1 - frame["F"] / FAR)


def curve(alarm: "pd.Series[float]", harmed: "pd.Series[bool]") -> pd.DataFrame:
    """Return the rates of detection and of false alarms, from the loudest alarm to the faintest."""
    each = pd.DataFrame({"detected": harmed, "false": ~harmed}).groupby(alarm).sum()
    rates = (each.sort_index(ascending=False).cumsum() / each.sum()).reset_index(names="alarm")
    first = pd.DataFrame({"alarm": [np.inf], "detected": [0.0], "false": [0.0]})
    return pd.concat([first, rates], ignore_index=True)


def kinds(frame: pd.DataFrame) -> "pd.Series[str]":
    """Return the kind of each cell: the first of a few that fits."""
    setting = frame["setting"]
    tests = {
        "points of several axes": frame["source"].isin(["forces", "atari"]),
        "noisy derivatives": setting.str.contains("slope_noise"),
        "trained by L-BFGS in equal time": setting.str.contains("lbfgs"),
        "others, more than 100 points": frame["points"] > 100,
    }
    found = np.select(list(tests.values()), list(tests), _FEW)
    return pd.Series(found, index=frame.index)


def summary(frame: pd.DataFrame) -> str:
    """Return counts of each source and kind, and every cell in which the rule was wrong."""
    alarm, twins = score(frame) < 0, frame[frame["twin"].notna()]
    twin = {
        "foresight": alarm,
        "twin: validation error above 1.2 times its own": frame["twin"] > 1.2,
    }
    tables = {
        "": [*_each(frame, "source", alarm), _counted("*all*", frame, alarm)],
        "By kind": _each(frame.assign(kind=kinds(frame)), "kind", alarm),
        "Beside a twin": [_counted(name, twins, own) for name, own in twin.items()],
        _TUNED: _tuned(frame),
        "Missed": frame[~alarm & (frame["harmed"])],
        "False alarms among helped": frame[alarm & (frame["outcome"] == "helped")],
    }
    parts = [_INTRO.format(CLEAR, FAR)]
    for title, rows in tables.items():
        shown = rows[_SHOWN].sort_values("ratio") if isinstance(rows, pd.DataFrame) else rows
        text = pd.DataFrame(shown).to_markdown(index=False, floatfmt=".3g")
        parts.append((f"## {title}\n\n" if title else "") + f"{text}\n")
    return "\n".join(parts)


def _each(frame: pd.DataFrame, key: str, alarm: "pd.Series[bool]") -> list[dict[str, str]]:
    groups = frame.groupby(key, sort=False)
    return [_counted(str(name), own, alarm) for name, own in groups]


def _tuned(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Choose the threshold on one source; tell how it does there and elsewhere."""
    own = frame["source"] == "regression"
    rates = curve(-score(frame[own]), frame[own]["harmed"])
    best = rates.loc[(rates["detected"] - rates["false"]).idxmax(), "alarm"]
    parts = {"regression": frame[own], "all others": frame[~own]}
    alarm = -score(frame) >= best
    return [_counted(f"{name}, below {-best:.2g}", each, alarm) for name, each in parts.items()]


def _counted(name: str, own: pd.DataFrame, alarm: "pd.Series[bool]") -> dict[str, str]:
    row = {"": name}
    for outcome in ("harmed", "level", "helped"):
        these = alarm[own.index[own["outcome"] == outcome]]
        row[f"alarms among {outcome}"] = f"{these.sum()} of {len(these)}"
    return row


_INTRO = """# foresight

Made by `scripts/benchmark.py study=foresight`. Ratio: error of the values with derivatives over \
without, geometric mean over seeds. *Harmed* are cells whose ratio is above {0:g} and whose mean \
log ratio is above its standard error; *helped* the same below; the others are *level*. An alarm \
is T below 0 by more than its standard error, or F < {1:g}, with medians over three draws of the \
points.
"""


_TUNED = "A threshold chosen on one source, in the place of min(T + its error, 1 + F / 10) < 0"
_FEW = "others, up to 100 points"


def _draw(frame: pd.DataFrame, path: Path) -> None:
    figure = figures.blank(12, 4)
    few, twins = frame[kinds(frame) == _FEW], frame[frame["twin"].notna()]
    shown = {"all": frame, _FEW: few, "with a twin": twins}
    places = figure.subplots(1, 3, sharey=True)
    for axes, (title, own) in zip(places, shown.items(), strict=True):
        harmed = own["harmed"]
        lines = {"foresight": -score(own), "T alone": -own["T"]}
        lines |= {"F alone": -own["F"]}
        lines |= {"twin": own["twin"]} if own is twins else {}
        for label, alarm in lines.items():
            rates = curve(alarm, harmed)
            text = f"{label}, area {np.trapezoid(rates['detected'], rates['false']):.2f}"
            axes.step(rates["false"], rates["detected"], where="post", label=text)
        rule = score(own) < 0
        axes.plot(rule[~harmed].mean(), rule[harmed].mean(), "ko", label="the rule")
        axes.set(xlabel="false alarms among not harmed")
        axes.set_title(f"{title}: {harmed.sum()} of {len(own)} harmed", fontsize=10)
        axes.legend(loc="lower right", fontsize=8)
    places[0].set_ylabel("harmed cells foreseen")
    figures.save(figure, path)
