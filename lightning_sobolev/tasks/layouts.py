"""Which columns a table of runs has, and which of them tell groups of runs apart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_sobolev.tasks.records import Record, StoredRun

_STUDENTS = {"small_cnn": "small", "nature_cnn": "same"}
_SEED = "seed"


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of a table with one line a run.

    Args:
        name: What its files are called.
        keys: Columns that say what was run, with their source; see ``StoredRun.look_up``.
        measures: Columns that say what came out, with their source.
    """

    name: str
    keys: dict[str, str]
    measures: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """All columns, in order."""
        return [*self.keys, *self.measures]

    @property
    def groups(self) -> list[str]:
        """Columns that differ between groups; runs of a group differ by their seed alone."""
        return [key for key in self.keys if key != _SEED]

    def record(self, run: StoredRun) -> Record:
        """Return the line of a run."""
        record = {k: run.look_up(source) for k, source in (self.keys | self.measures).items()}
        if "student" in record:
            record["student"] = _STUDENTS.get(str(record["student"]), record["student"])
        return record

    def with_keys(self, paths: Sequence[str]) -> "Layout":
        """Return this layout with more settings as columns.

        Args:
            paths: Key paths in the configuration, or names of groups.
        """
        added = {path: f"config:{path}" for path in paths if path not in self.keys}
        return replace(self, keys={**self.keys, **added})


PONG = Layout(
    name="pong",
    keys={
        "game": "config:env.settings.game",
        "student": "choice:model",
        "fraction": "config:data.fraction",
        "sobolev": "choice:sobolev",
        "seed": "config:seed",
        "lr": "config:lr",
        "steps": "config:steps",
    },
    measures={
        "test_kl": "metric:test/kl",
        "test_action_disagreement": "metric:test/action_disagreement",
        "test_merged_disagreement": "metric:test/merged_disagreement",
        "test_derivative_nmse": "metric:test/derivative_nmse",
        "student_return": "metric:test/student_return",
        "seconds": "metric:seconds_fit",
    },
)
REGRESSION = Layout(
    name="regression",
    keys={
        "function": "config:function",
        "dim": "config:dim",
        "num_points": "config:num_points",
        "activation": "config:model.activation",
        "optimizer": "config:optimizer",
        "budget": "config:budget",
        "order": "config:sobolev.order",
        "sobolev": "choice:sobolev",
        "seed": "config:seed",
        "lr": "config:lr",
    },
    measures={
        "test_value_nmse": "metric:test/value_nmse",
        "test_derivative_nmse": "metric:test/derivative_nmse",
        "seconds": "metric:seconds_fit",
    },
)
SYNTHETIC_GRADIENTS = Layout(
    name="synthetic_gradients",
    keys={
        "network": "choice:model",
        "data": "config:data.images",
        "cuts": "config:cuts",
        "activation": "config:task.module.models.activation",
        "kind": "config:kind",
        "seed": "config:seed",
        "epochs": "metric:train/epochs",
    },
    measures={
        "test_accuracy": "metric:test/accuracy",
        "gradient_cosine": "metric:test/gradient_cosine",
        "seconds": "metric:seconds_fit",
    },
)
DECOUPLING = Layout(
    name="decoupling",
    keys=dict.fromkeys(
        ("way", "kind", "data", "sections", "delay", "steps", "batch_size", "seed"), ""
    ),
    measures=dict.fromkeys(
        (
            "test_accuracy",
            "test_loss",
            "gradient_cosine",
            "waited_lowest",
            "waited_highest",
            "waited",
            "samples_per_second",
            "lateness",
            "forgotten",
        ),
        "",
    ),
)
FINANCE = Layout(
    name="finance",
    keys={
        "market": "config:market",
        "num_samples": "config:num_samples",
        "sobolev": "choice:sobolev",
        "seed": "config:seed",
        "lr": "config:lr",
    },
    measures={
        "test_price_rmse": "metric:test/price_rmse",
        "test_delta_rmse": "metric:test/delta_rmse",
        "seconds": "metric:seconds_fit",
    },
)
FORCES = Layout(
    name="forces",
    keys={
        "system": "config:system",
        "num_frames": "config:num_frames",
        "energy_weight": "config:energy_weight",
        "sobolev": "choice:sobolev",
        "seed": "config:seed",
        "lr": "config:lr",
    },
    measures={
        "test_energy_mae": "metric:test/energy_mae",
        "test_force_mae": "metric:test/force_mae",
        "seconds": "metric:seconds_fit",
    },
)
PBT = Layout(
    name="pbt",
    keys={
        "experiment": "config:name",
        "tune": "choice:tune",
        "population": "config:tuning.population",
        "total_steps": "metric:total_steps",
        "sobolev": "choice:sobolev",
        "seed": "config:seed",
    },
    measures={"validation_score": "metric:score", "copies": "metric:copies"},
)
_BY_NAME = {layout.name: layout for layout in (REGRESSION, SYNTHETIC_GRADIENTS, FINANCE, FORCES)}


def layout_of_runs(runs: Sequence[StoredRun]) -> Layout:
    """Return the layout that fits all the runs.

    Args:
        runs: Finished runs; when they are of several experiments the layout is a general one.
    """
    tests = {
        key.replace("/", "_"): f"metric:{key}"
        for key in sorted({key for run in runs for key in run.metrics if key.startswith("test/")})
    }
    if all("tune" in run.choices for run in runs):
        return replace(PBT, measures={**tests, **PBT.measures})
    names = {str(run.look_up("config:name")) for run in runs}
    if len(names) == 1:
        name = names.pop()
        if name in _BY_NAME:
            return _BY_NAME[name]
        if name.startswith("distill_"):
            return replace(PONG, name=name.removeprefix("distill_"))
    if all(name.startswith("distill_") for name in names):
        return replace(PONG, name="atari")
    return Layout(
        name="runs",
        keys={
            "experiment": "config:name",
            "model": "choice:model",
            "sobolev": "choice:sobolev",
            "seed": "config:seed",
        },
        measures={**tests, "seconds": "metric:seconds_fit"},
    )


def layout_of_table(path: Path, columns: Sequence[str]) -> Layout:
    """Return the layout of a table that was written earlier.

    Args:
        path: Its file; gives the name.
        columns: Its columns. Those from the first measure of a known layout on are measures.
    """
    layouts = (PONG, REGRESSION, SYNTHETIC_GRADIENTS, DECOUPLING, PBT)
    known = {measure for layout in layouts for measure in layout.measures}
    is_measure = {c: c in known or c.startswith("test_") or c == "seconds" for c in columns}
    return Layout(
        name=path.stem,
        keys={column: "" for column in columns if not is_measure[column]},
        measures={column: "" for column in columns if is_measure[column]},
    )
