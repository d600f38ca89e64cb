"""Students of finished runs in the game: a table of what all of them return, and their videos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_sobolev.atari import AtariSettings
from lightning_sobolev.experiments.distillation.callbacks import PlayGame
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.distillation.video import VIDEO, GameVideo
from lightning_sobolev.experiments.report.runs import (
    Run,
    find_runs,
    read_table,
    tabulate,
    write_table,
)
from lightning_sobolev.experiments.run.stored import load_module

TABLE = "play.csv"

_ABOUT = ["game", "student", "fraction", "sobolev", "seed"]
_GAMES = ["run", "episodes", "games_seed"]


def play_stored(
    root: Path, out: Path, *, num_episodes: int = 30, seed: int = 1000
) -> Iterator[Path]:
    """Play with the student of every finished distillation below a folder.

    The table ``play.csv`` has two lines a student, sampled and greedy actions, and is written whole
    after each of them; what it holds already is not played again. Teachers play once for each game.

    Args:
        root: A folder with finished distillations; their recordings are not needed.
        out: Folder of the table, and of what the teachers returned.
        num_episodes: Whole episodes with sampled actions, and as many with greedy ones.
        seed: Seed of the games and of the sampled actions: the same for every student.

    Yields:
        The table, whenever a student has played.

    Raises:
        ValueError: If there are less than two episodes, which leaves no standard error, there is no
            finished run, or one is no distillation.
    """
    if num_episodes < 2:
        raise ValueError(f"num_episodes must be at least 2, got {num_episodes}")
    path = out / TABLE
    table = read_table(path).astype({"run": str}) if path.is_file() else pd.DataFrame()
    for run in _distillations(root):
        name = run.folder.relative_to(root).as_posix()
        games = pd.Series([name, num_episodes, seed], index=_GAMES)
        if not table.empty and (table[_GAMES] == games).all(axis=1).any():
            continue
        module, settings = _student(run)
        game = PlayGame(settings, out / "returns", num_episodes=num_episodes, seed=seed)
        numbers = {key: float(value) for key, value in game.returns(module).items()}
        about = tabulate([run]).reindex(columns=_ABOUT).iloc[0].to_dict()
        lines = [
            {"run": name, **about, "actions": actions, **games[1:]}
            | {
                f"{who}_{column}": numbers[f"test/{who}_return{ending}"]
                for who in ("student", "teacher")
                for column, ending in (("return", way), ("error", f"{way}_standard_error"))
            }
            for actions, way in (("sampled", ""), ("greedy", "_greedy"))
        ]
        table = pd.concat([table, pd.DataFrame(lines)], ignore_index=True)
        write_table(path, table)
        yield path


def film_stored(root: Path, **look: Any) -> Iterator[Path]:
    """Write ``game.gif`` into the folder of every finished distillation below a folder.

    Args:
        root: A folder with finished distillations; their recordings are not needed.
        **look: Arguments of :class:`GameVideo`.

    Yields:
        Every file when it is written.
    """
    for run in _distillations(root):
        module, settings = _student(run)
        yield GameVideo(settings, **look).save(module, run.folder / VIDEO)


def _distillations(root: Path) -> list[Run]:
    runs, wanted = find_runs(root), DistillationModule.__qualname__
    for run in runs:
        target = str(run.setting("module._target_"))
        if target.rpartition(".")[-1] != wanted:
            raise ValueError(f"{run.folder} must be a run of {wanted}, got {target}")
    return runs


def _student(run: Run) -> tuple[DistillationModule, AtariSettings]:
    # read, not instantiated: the folder may be somebody else's
    keys = [key for key in run.config["env"]["settings"] if key != "_target_"]
    settings: dict[str, Any] = {key: run.setting(f"env.settings.{key}") for key in keys}
    module = load_module(run.folder)
    return DistillationModule.of(module, play_stored), AtariSettings(**settings)
