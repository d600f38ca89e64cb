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
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.run.conf import config_hash

METRICS = "metrics.json"
ENDS = ("sobolev", "seed", "lr", "steps")  # the last settings of every table, in this order

_BEGINS = ("env.settings.game", "model", "data.fraction")  # the first ones where there is a game
_BESIDE = {"ckpt", "logger", "pictures", "progress", "run_dir", "threads"}  # change no number
# Tables of results have these columns since their first edition.
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
_STUDENTS = {"small_cnn": "small", "nature_cnn": "same"}
_CHOICES = "hydra.runtime.choices"
_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")  # the innermost one that calls no resolver

Cell = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run on disk.

    Args:
        folder: The folder of the run.
        metrics: The numbers of ``metrics.json``.
        config: Its configuration in plain containers, not resolved.
        choices: Which file was chosen from every group.
        overridden: The keys and groups that its command line named.
    """

    folder: Path
    metrics: dict[str, float]
    config: dict[str, Any]
    choices: dict[str, str]
    overridden: tuple[str, ...]

    def setting(self, key: str) -> Cell:
        """Return a setting.

        References to other settings are followed. ``${oc.env:HOME}`` and all else that asks more
        than the configuration stays as it is written: the run may be somebody else's.

        Args:
            key: A group, or a key path in the configuration.

        Returns:
            What was chosen from the group, or the value; None where there is none.
        """
        if key in self.choices:
            return self.choices[key]
        value = _followed(self.config, _at(self.config, key))
        if key == "seed" and value is None:  # left open, then drawn
            return self.metrics.get("seed")
        return value if value is None or isinstance(value, str | int | float) else str(value)


def _at(config: Any, path: str) -> Any:
    for part in path.strip().split("."):
        if isinstance(config, list) and part.isdigit():
            config = dict(enumerate(config)).get(int(part))
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config


def _followed(config: Any, value: Any) -> Any:
    for _ in range(20):  # a circle ends
        found = _REFERENCE.search(value) if isinstance(value, str) else None
        there = None if found is None else _at(config, found[1])
        if found is None or there is None:
            break
        value = there if found[0] == value else value.replace(found[0], str(there))
    return value


def find_runs(root: Path) -> list[Run]:
    """Collect every finished run below a folder, in the order of their paths.

    Args:
        root: A folder; runs without ``metrics.json`` did not finish and are left out.

    Returns:
        The runs.

    Raises:
        ValueError: If there is no finished run, or a file of one is damaged or of another run.
    """
    runs = [_read_run(path.parent) for path in sorted(root.rglob(METRICS), key=_natural)]
    if not runs:
        raise ValueError(f"a folder with finished runs ({METRICS}) is needed, got none in {root}")
    return runs


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort 2 before 10: a sweep numbers its folders."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _read_run(folder: Path) -> Run:
    metrics = _read_metrics(folder / METRICS)
    stated = metrics.pop("config_hash", None)
    numbers = {
        key: math.nan if value is None else value
        for key, value in metrics.items()
        if value is None or isinstance(value, int | float)
    }
    hydra = folder / ".hydra"
    if not hydra.is_dir():  # not started by a script
        return Run(folder, numbers, {}, {}, ())
    config = _read_yaml(hydra / "config.yaml", DictConfig)
    if stated is not None and not _may_have(stated, config, numbers.get("seed")):
        raise ValueError(
            f"{folder / METRICS} and {hydra / 'config.yaml'} must be of one run, got numbers with "
            f"config_hash={stated!r} and another configuration: delete the folder or run it again"
        )
    choices = _at(_plain(_read_yaml(hydra / "hydra.yaml", DictConfig)), _CHOICES)
    overrides = _plain(_read_yaml(hydra / "overrides.yaml", ListConfig))
    if not isinstance(choices, dict):
        raise ValueError(f"{hydra / 'hydra.yaml'} must have {_CHOICES}, got none")
    overridden = tuple(re.split("[=@]", str(text).lstrip("+~"))[0] for text in overrides)
    chosen = {group: str(file) for group, file in choices.items() if file is not None}
    return Run(folder, numbers, _plain(config), chosen, overridden)


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, got {error}") from error
    if not isinstance(metrics, dict) or any(isinstance(v, dict | list) for v in metrics.values()):
        raise ValueError(f"{path} must be a flat JSON object, got {str(metrics)[:60]}")
    return metrics


def _read_yaml(path: Path, kind: type[DictConfig | ListConfig]) -> Any:
    try:
        content = OmegaConf.load(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} must be YAML as Hydra writes it, got {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must be a {kind.__name__}, got a {type(content).__name__}")
    return content


def _plain(config: DictConfig | ListConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def _may_have(stated: Any, config: DictConfig, seed: float | None) -> bool:
    """Say whether a configuration has a hash; where it asks its machine nobody else can tell."""
    if "${oc.env" in OmegaConf.to_yaml(config):
        return True
    config = config.copy()
    if config.get("seed") is None and seed is not None:
        config.seed = int(seed)
    try:
        return config_hash(config) == stated
    except OmegaConfBaseException:
        return True


def tabulate(runs: Sequence[Run], by: Sequence[str] = ()) -> pd.DataFrame:
    """Set runs under each other: what any of them overrode, and every number.

    Args:
        runs: Finished runs.
        by: More settings that become columns.

    Returns:
        A row a run. ``sobolev``, ``seed``, ``lr`` and ``steps`` are the last settings; the numbers
        begin with those of the test.

    Raises:
        ValueError: If no run has a setting of ``by``, or two runs have the same settings.
    """
    columns = _columns(runs, by)
    known = dict.fromkeys(key for run in runs for key in run.metrics if key not in ENDS)
    measures = sorted(known, key=lambda key: (not key.startswith("test/"), "seconds" not in key))
    rows = [
        {
            **{name: _cell(name, run.setting(key)) for name, key in columns.items()},
            **{_measure(key): run.metrics.get(key, math.nan) for key in measures},
        }
        for run in runs
    ]
    seen: dict[tuple[Cell, ...], Run] = {}
    for run, row in zip(runs, rows, strict=True):
        other = seen.setdefault(tuple(row[name] for name in columns), run)
        if other is not run:
            raise ValueError(
                f"runs must differ in one of {', '.join(columns)}, got the same in "
                f"{other.folder} and {run.folder}: name with --by what tells them apart, e.g. "
                "--by data.seed, or delete one"
            )
    return pd.DataFrame(rows).convert_dtypes()


def _columns(runs: Sequence[Run], by: Sequence[str]) -> dict[str, str]:
    """Return the settings by what their columns are called."""
    has_game = any(run.setting(_BEGINS[0]) for run in runs)
    overridden = [key for run in runs for key in run.overridden]
    inner = [key for key in (*overridden, *by) if key not in ENDS and key not in _BESIDE]
    keys = [
        key
        for key in dict.fromkeys([*(_BEGINS if has_game else ()), *inner, *ENDS])
        if any(run.setting(key) is not None for run in runs)
    ]
    if missing := set(by).difference(keys):
        raise ValueError(f"--by must name settings of the runs, got {', '.join(sorted(missing))}")
    names = {**_NAMES, "model": "student" if has_game else "network"}
    return {key if (name := names.get(key, key)) in keys else name: key for key in keys}


def _cell(name: str, value: Cell) -> Cell:
    return _STUDENTS.get(str(value), value) if name == "student" else value


def _measure(key: str) -> str:
    return _NAMES.get(key, key.replace("/", "_"))


def read_table(path: Path) -> pd.DataFrame:
    """Read a table.

    Args:
        path: A CSV file with a header.

    Returns:
        Its rows. Empty cells and ``nan`` are unknown; the text ``none`` is one like others.

    Raises:
        ValueError: If the file is damaged, or has no row.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    except ValueError as error:
        raise ValueError(f"{path} must be a table (CSV, UTF-8), got {error}") from error
    if frame.empty:
        raise ValueError(f"a table with a header and at least one line is needed, got {path}")
    return frame


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table, whole or not at all.

    Args:
        path: The file.
        frame: The rows; numbers are written with six digits.
    """
    with whole(path) as writing:
        frame.to_csv(writing, index=False, float_format="%.6g")
