"""How distilled students do in the game, each in the same games, after their training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate

from lightning_sobolev.experiments.distillation.playing import PlayGame, playing_teacher
from lightning_sobolev.experiments.report.layouts import PONG
from lightning_sobolev.experiments.report.records import Record, StoredRun, read_csv, write_csv
from lightning_sobolev.experiments.run.stored import chosen_weights, find_distillations, load_module

TABLE = "play.csv"
WAYS = ("drawn", "likeliest")

_ABOUT = ("game", "student", "fraction", "sobolev", "seed")
_RETURNS = ("student_return", "student_error", "teacher_return", "teacher_error")
_GAMES = ("episodes", "games_seed")
_COLUMNS = ("run", *_ABOUT, "actions", *_GAMES, *_RETURNS)


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which games every student plays.

    Args:
        num_episodes: Whole episodes with drawn actions, and as many with likeliest ones.
        seed: Seed of the games and of the drawn actions: the same for every student.

    Raises:
        ValueError: If ``num_episodes`` is less than 2, which leaves no standard error.
    """

    num_episodes: int = 30
    seed: int = 1000

    def __post_init__(self) -> None:
        if self.num_episodes < 2:
            raise ValueError(f"num_episodes must be at least 2, got {self.num_episodes}")

    def score(self, root: Path, out: Path) -> Iterator[Path]:
        """Play with the student of every finished distillation below a folder.

        The table ``play.csv`` has two lines a student and is written whole after each of them; what
        it holds already is not played again. Teachers play once for each game.

        Args:
            root: A folder with finished distillations; their recordings are not needed.
            out: Folder of the table, and of what the teachers returned.

        Yields:
            The table, whenever a student has played.

        Raises:
            ValueError: If there is no finished run, or one is no distillation.
        """
        runs = find_distillations(root)
        out.mkdir(parents=True, exist_ok=True)
        table = out / TABLE
        # a sweep numbers its folders
        lines = read_csv(table, texts=["run"])[1] if table.is_file() else []
        known = {(line["run"], *(line[key] for key in _GAMES)) for line in lines}
        for run in runs:
            name = run.folder.relative_to(root).as_posix()
            if (name, self.num_episodes, self.seed) not in known:
                lines += [{"run": name, **line} for line in self._lines(run, out)]
                write_csv(table, _COLUMNS, lines)
                yield table

    def _lines(self, run: StoredRun, out: Path) -> list[Record]:
        """Play; return a line for drawn actions and one for likeliest ones."""
        module = load_module(run.config, chosen_weights(run.folder))
        settings, teacher = instantiate(run.config.env.settings), playing_teacher(module)
        game = PlayGame(settings, teacher, self.num_episodes, self.seed, out / "returns")
        numbers = game.returns(module, progress=True)
        record = PONG.record(run)
        about: Record = {key: record[key] for key in _ABOUT}
        lines: list[Record] = []
        for way, ending in zip(WAYS, ("", "_greedy"), strict=True):
            games = dict(zip(_GAMES, (self.num_episodes, self.seed), strict=True))
            line: Record = {**about, "actions": way, **games}
            for who in ("student", "teacher"):
                measure = f"test/{who}_return{ending}"
                line[f"{who}_return"] = numbers[measure]
                line[f"{who}_error"] = numbers[f"{measure}_standard_error"]
            lines.append(line)
        return lines
