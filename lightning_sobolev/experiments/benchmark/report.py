"""What a training step costs: measure what is missing, then write rows, table and charts."""

import json
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lightning_sobolev._files import write_json, write_text
from lightning_sobolev.experiments.benchmark.methods import METHODS
from lightning_sobolev.experiments.benchmark.models import WORKLOADS
from lightning_sobolev.experiments.benchmark.timing import REFERENCES, Row, measure
from lightning_sobolev.experiments.common import figures

log = logging.getLogger(__name__)

_INTRO = """# Speed of a step

Made by `python scripts/benchmark.py`; `conf/study/speed.yaml` lists what can be set. Medians over
rounds in which all methods take turns in one process; ratios are medians of each round's own, with
quartiles. *To plain*: the student alone, values from the batch. *To distillation*: a teacher asked
for values. *To the limit*: the row's time, divided by that of plain distillation times the fewest
floating-point operations that do the row's work over those of plain distillation. *Peak*: allocated
during a step beyond what is held between steps. A ratio to the limit below 1 says that much of
plain distillation's time is not in the operations that are counted.
"""
_HEAD = (
    "| method | ms a step | to plain | to distillation | to best by hand | to the limit | "
    "peak MB | GFLOP |\n" + "|---" * 8 + "|"
)
_BY_HAND = ("plain", "distillation", "as_usual", "at_best", "over_outputs", "by_jacrev")
_CLOCKS = {"cpu": "seconds of processor time", "wall": "seconds on the clock"}
_SETTINGS = ("accelerator", "clock", "rounds", "seconds", "threads")


def run_speed(cfg: DictConfig) -> Path:
    """Measure what is missing or was measured with other settings; write rows, table and charts."""
    path = Path(cfg.out) / "speed.json"
    torch.set_num_threads(cfg.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    plan = _plan(cfg)
    rows: list[Row] = []
    if path.is_file() and not cfg.fresh:
        rows = json.loads(path.read_text(encoding="utf-8"))
    for name, methods in plan.items():
        settings = {key: cfg[key] for key in _SETTINGS}
        settings |= {"methods": methods, "torch": torch.__version__}
        if any(_workload(row) == name and row["settings"] == settings for row in rows):
            log.info("%s is measured already", name)
            continue
        log.info("%s: %s", name, ", ".join(methods))
        measured = [{**row, "settings": settings} for row in measure(WORKLOADS[name], methods, cfg)]
        rows = [row for row in rows if _workload(row) != name] + measured
        write_json(path, rows)
    for name, own in groupby(rows, _workload):
        _save_chart(path.with_name(f"speed_{name}.png"), name, list(own))
    return write_table(path.with_suffix(".md"), rows)


def _plan(cfg: DictConfig) -> dict[str, list[str]]:
    plan = {}
    for name, methods in OmegaConf.to_container(cfg.workloads).items():  # type: ignore[union-attr]
        if cfg.only is not None and name not in cfg.only:
            continue
        if name not in WORKLOADS:
            raise ValueError(f"workloads must be among {list(WORKLOADS)}, got {name!r}")
        if unknown := set(methods) - set(METHODS):
            raise ValueError(f"methods must be among {list(METHODS)}, got {sorted(unknown)}")
        plan[str(name)] = list(dict.fromkeys([*REFERENCES, *methods]))
    return plan


def _workload(row: Row) -> str:
    return f"{row['network']}-{row['batch']}"


def write_table(path: Path, rows: Sequence[Row]) -> Path:
    """Write all rows as Markdown, whole or not at all."""
    lines = [_INTRO]
    for name, group in groupby(rows, _workload):
        own = list(group)
        settings: dict[str, Any] = own[0].get("settings", {})
        clock = _CLOCKS.get(settings.get("clock", ""), "seconds")
        threads, version = settings.get("threads"), settings.get("torch")
        where = f"Device {own[0]['device']}, {threads} thread(s) of torch {version}, {clock}."
        lines += [f"## {name}", "", where, "", _HEAD]
        lines += [_line(row) for row in own if "refused" not in row]
        lines += [""]
        lines += [f"- {_title(r)}: not possible ({r['refused']})" for r in own if "refused" in r]
        lines += [f"![{name}](speed_{name}.png)", ""]
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


def _title(row: Row) -> str:
    return METHODS[row["method"]].title


def _line(row: Row) -> str:
    cells = [_title(row), f"{1e3 * row['median_seconds']:.3g}"]
    for to in ("plain", "distillation", "best_by_hand", "limit"):
        low, high = row[f"ratio_to_{to}_quartiles"]
        cells += [f"{row[f'ratio_to_{to}']:.2f} ({low:.2f} to {high:.2f})"]
    cells += [f"{row['peak_bytes'] / 1e6:.3g}", f"{row['flops'] / 1e9:.3g}"]
    return "| " + " | ".join(cells) + " |"


def _save_chart(path: Path, name: str, rows: Sequence[Row]) -> None:
    own = [row for row in rows if "refused" not in row]
    figure = figures.blank(7.0, 0.4 * len(own) + 1.2)
    axes = figure.subplots()
    ratios = [row["ratio_to_distillation"] for row in own]
    colors = ["C0" if row["method"] in _BY_HAND else "C2" for row in own]
    bars = axes.barh([_title(row) for row in own], ratios, color=colors)
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="time of a step, plain distillation = 1", title=name)
    axes.margins(x=0.12)
    figures.save(figure, path)
