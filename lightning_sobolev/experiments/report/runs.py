"""Finished runs below a folder as a table: a row a run, its settings and then its numbers."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.run.conf import BYSTANDERS, STORED, config_hash, read_config

METRICS = "metrics.json"
ENDS = ("sobolev", "seed", "lr", "steps")  # the last settings of every table, in this order

_BEGINS = ("env.settings.game", "model", "data.fraction")  # the first ones where there is a game
# Tables of results have had these columns from their first edition on.
_NAMES = {
    "env.settings.game": "game",
    "data.fraction": "fraction",
    "data.images": "data",
    "model.activation": "activation",
    "tuning.population": "population",
    "test/student_return": "student_return",
    "test/gradient_cosine": "gradient_cosine",
    "seconds_fit": "seconds",
    "score": "validation_score",
}
_DECIDED = ("where",)  # texts among the numbers
_STUDENTS = {"small_cnn": "small", "nature_cnn": "same"}
_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")  # the innermost one that calls no resolver


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run on disk."""

    folder: Path
    metrics: dict[str, float]
    config: dict[str, Any]  # plain, not resolved
    choices: dict[str, str]  # the file that was chosen from every group
    overridden: list[str]  # the keys and groups that the command line named
    decided: dict[str, str]  # settings that were left open, as the data decided them

    def setting(self, key: str) -> Any:
        """Return what was chosen from a group, or the value of a setting; None if there is none."""
        for known in (self.choices, self.decided):
            if key in known:
                return known[key]
        value = _at(self.config, key)
        # References to other settings are followed. ``${oc.env:HOME}`` and all else that asks more
        # than the configuration stays as it is written: the run may be somebody else's.
        for _ in range(20):  # a circle ends
            found = _REFERENCE.search(value) if isinstance(value, str) else None
            there = None if found is None else _at(self.config, found[1])
            if found is None or there is None:
                break
            value = there if found[0] == value else value.replace(found[0], str(there))
        if key == "seed" and value is None:  # left open, then drawn
            return self.metrics.get("seed")
        return value if value is None or isinstance(value, str | int | float) else str(value)


def _at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def find_runs(root: Path) -> list[Run]:
    """Collect the finished runs below a folder; a damaged one, or none at all, is a ValueError."""
    found = root.rglob(METRICS)
    # 2 before 10: a sweep numbers its folders
    paths = sorted(found, key=lambda path: [part.zfill(8) for part in path.parts])
    if not paths:
        raise ValueError(f"a folder with finished runs ({METRICS}) is needed, got none in {root}")
    return [_read_run(path.parent) for path in paths]


def _read_run(folder: Path) -> Run:
    metrics = _load(folder / METRICS, json.loads, dict)
    numbers = {key: math.nan if value is None else value for key, value in metrics.items()}
    stated = numbers.pop("config_hash", None)
    decided = {key: str(numbers.pop(key)) for key in _DECIDED if key in numbers}
    if wrong := [value for value in numbers.values() if not isinstance(value, int | float)]:
        raise ValueError(f"{folder / METRICS} must hold numbers, got {wrong[0]!r}")
    config = read_config(folder)
    if config is None:  # not started by a script
        return Run(folder, numbers, {}, {}, [], decided)
    if stated is not None and not _may_have(stated, config, numbers.get("seed")):
        raise ValueError(
            f"{METRICS} and {STORED} must be of one run, got numbers with config_hash={stated!r} "
            f"beside another configuration in {folder}: run it again or delete it"
        )
    # Plain YAML, not OmegaConf: nothing is resolved.
    hydra = _load(folder / STORED.with_name("hydra.yaml"), yaml.safe_load, dict)
    overrides = _load(folder / STORED.with_name("overrides.yaml"), yaml.safe_load, list)
    choices = _at(hydra, "hydra.runtime.choices")
    if not isinstance(choices, dict):
        raise ValueError(f"hydra.yaml must have hydra.runtime.choices, got none in {folder}")
    chosen = {group: str(file) for group, file in choices.items() if file is not None}
    overridden = [re.split("[=@]", str(text).lstrip("+~"))[0] for text in overrides]
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return Run(folder, numbers, plain, chosen, overridden, decided)


def _load(path: Path, parse: Any, kind: type) -> Any:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} must be whole, got {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a {kind.__name__}, got {str(content)[:40]!r}")
    return content


def _may_have(stated: Any, config: DictConfig, seed: float | None) -> bool:
    """Say whether a configuration has a hash; one that asks its machine can have any."""
    if "${oc.env" in OmegaConf.to_yaml(config):
        return True
    config = config.copy()
    try:
        if "seed" in config and config.seed is None:
            config.seed = seed
        return bool(config_hash(config) == stated)
    except OmegaConfBaseException:
        return True


def tabulate(runs: Sequence[Run], by: Sequence[str] = ()) -> pd.DataFrame:
    """Set runs under each other: what any of them overrode, or ``by`` names, and every number.

    The numbers begin with those of the test, the one that ``score`` names first.
    """
    has_game = any(run.setting(_BEGINS[0]) for run in runs)
    inner = [key for key in (*(k for run in runs for k in run.overridden), *by) if key not in ENDS]
    keys = dict.fromkeys([*(_BEGINS if has_game else ()), *inner, *ENDS])
    settings = pd.DataFrame([{key: run.setting(key) for key in keys} for run in runs])
    settings = settings.drop(columns=[*BYSTANDERS], errors="ignore").dropna(axis=1, how="all")
    if missing := set(by).difference(settings):
        raise ValueError(f"--by must name settings of the runs, got {', '.join(sorted(missing))}")
    scores = {str(run.setting("score.metric")).replace("val/", "test/") for run in runs}
    numbers = pd.DataFrame([run.metrics for run in runs]).drop(columns=[*ENDS], errors="ignore")
    first = sorted(numbers, key=lambda k: (k not in scores, k[:5] != "test/", "seconds" not in k))
    if has_game:
        settings["model"] = settings["model"].replace(_STUDENTS)
    names = {**_NAMES, "model": "student" if has_game else "network"}
    settings = settings.rename(columns={k: v for k, v in names.items() if v not in settings})
    rows = [str(row) for row in settings.to_numpy().tolist()]
    if again := [place for place, row in enumerate(rows) if row in rows[:place]]:
        one, other = runs[rows.index(rows[again[0]])].folder, runs[again[0]].folder
        raise ValueError(
            f"runs must differ in one of {', '.join(settings)}, got the same in {one} and "
            f"{other}: name with --by what tells them apart, e.g. --by data.seed, or delete one"
        )
    numbers = numbers[first].rename(columns=lambda key: names.get(key, key.replace("/", "_")))
    return settings.join(numbers).convert_dtypes()


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with a header; a damaged or empty one is a ValueError with its name."""
    try:
        # The text ``none`` is one like others.
        frame = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    except ValueError as error:
        raise ValueError(f"{path} must be a table (CSV, UTF-8), got {error}") from error
    if frame.empty or not isinstance(frame.index, pd.RangeIndex):  # cells beyond the header
        raise ValueError(f"a table with a header and at least one line is needed, got {path}")
    return frame


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table, whole or not at all; numbers with six digits."""
    with whole(path) as writing:
        frame.to_csv(writing, index=False, float_format="%.6g")
