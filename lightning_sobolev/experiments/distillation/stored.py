"""Students of finished runs in the game: a table of what all of them return, and their videos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_sobolev._checks import require
from lightning_sobolev.atari import AtariSettings
from lightning_sobolev.experiments.distillation.callbacks import PlayGame
from lightning_sobolev.experiments.distillation.figures import VIDEO, GameVideo
from lightning_sobolev.experiments.distillation.module import DistillationModule, distillation
from lightning_sobolev.experiments.distillation.played import Settings, played
from lightning_sobolev.experiments.report import runs as stored
from lightning_sobolev.experiments.report.runs import Run
from lightning_sobolev.experiments.run.stored import load_module
from lightning_sobolev.policies import EnvSettings

TABLE = "play.csv"

_ABOUT = ["game", "student", "fraction", "sobolev", "seed"]
_GAMES = ["run", "episodes", "games_seed"]


def play_stored(
    root: Path, out: Path, *, num_episodes: int = 30, seed: int = 1000
) -> Iterator[Path]:
    """Play with the student of every finished distillation below a folder; yield the table.

    ``play.csv`` has two lines a student, sampled and greedy actions, and is written whole after
    each student; what it holds already is not played again, and no teacher plays a game twice.
    """
    require(num_episodes >= 2, "num_episodes", "at least 2", num_episodes)
    path = out / TABLE
    table = stored.read_table(path).astype({"run": str}) if path.is_file() else pd.DataFrame()
    for run in _distillations(root):
        name = run.folder.relative_to(root).as_posix()
        games = dict(zip(_GAMES, (name, num_episodes, seed), strict=True))
        if not table.empty and (table[_GAMES] == pd.Series(games)).all(axis=1).any():
            continue
        module, settings = _student(run)
        game = PlayGame(settings, out / "returns", num_episodes=num_episodes, seed=seed)
        numbers = {key: float(value) for key, value in game.returns(module, progress=True).items()}
        about = stored.tabulate([run]).reindex(columns=_ABOUT).iloc[0].to_dict()
        about["game"] = played(settings).name
        lines = []
        for actions, way in (("sampled", ""), ("greedy", "_greedy")):
            line = {"run": name, **about, "actions": actions, **games}
            for who in ("student", "teacher"):
                line[f"{who}_return"] = numbers[f"test/{who}_return{way}"]
                line[f"{who}_error"] = numbers[f"test/{who}_return{way}_standard_error"]
            lines.append(line)
        table = pd.concat([table, pd.DataFrame(lines)], ignore_index=True)
        stored.write_table(path, table)
        yield path


def film_stored(root: Path, **look: Any) -> Iterator[Path]:
    """Write ``game.gif`` into every finished distillation below a folder, as GameVideo does."""
    for run in _distillations(root):
        module, settings = _student(run)
        if not isinstance(settings, AtariSettings):
            raise ValueError(
                f"{run.folder} must be a run in a game, which has frames, got {settings}"
            )
        GameVideo(settings, **look).save(module, run.folder / VIDEO)
        yield run.folder / VIDEO


def _distillations(root: Path) -> list[Run]:
    runs, wanted = stored.find_runs(root), DistillationModule.__qualname__
    for run in runs:
        target = str(run.setting("module._target_"))
        if target.rpartition(".")[-1] != wanted:
            raise ValueError(f"{run.folder} must be a run of {wanted}, got {target}")
    return runs


def _student(run: Run) -> tuple[DistillationModule, Settings]:
    # read, not instantiated: the folder may be somebody else's
    keys = {*run.config["env"]["settings"]} - {"_target_", "_convert_"}
    settings: dict[str, Any] = {key: run.setting(f"env.settings.{key}") for key in keys}
    module = distillation(load_module(run.folder))
    if "id" not in settings:
        return module, AtariSettings(**settings)
    options = run.config["env"]["settings"]["options"]
    return module, EnvSettings(**{**settings, "options": options})
