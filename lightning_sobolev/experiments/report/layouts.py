"""The tables of the experiments, and which of them some runs or a file belong to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.records import StoredRun

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
RATES = (0.0, 25.0, 50.0, 75.0, 85.0, 95.0)
NOISES = (0.0, 0.25, 0.5, 1.0, 2.0)
BAND_LIMITS = Layout(
    name="bandlimit",
    keys={
        "data": "config:dataset",
        "rate": "config:rate",
        "energy": "config:energy",
        "steps": "config:steps",
        "seed": "config:seed",
    },
    measures={
        "test_accuracy": "metric:test/accuracy",
        **{f"test_accuracy_rate_{r:g}": f"metric:test/accuracy_rate_{r:g}" for r in RATES},
        **{f"test_accuracy_noise_{n:g}": f"metric:test/accuracy_noise_{n:g}" for n in NOISES},
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
EVOLUTION = Layout(
    name="evolution",
    keys={
        "problem": "config:problem",
        "activation": "config:model.activation",
        "sobolev": "config:norm",
        "seed": "config:seed",
        "lr": "config:lr",
    },
    measures={
        **{
            f"test_{norm}": f"metric:test/{norm}"
            for norm in ("l2_l2", "linf_l2", "linf_linf", "h1", "h1_h1", "w14_h1", "l2_h2")
        },
        "seconds": "metric:seconds_fit",
    },
)
COLORED_NOISE = Layout(
    name="colored_noise",
    keys={
        "defended": "config:defended",
        "noise": "config:noise",
        "seed": "config:seed",
        "lr": "config:lr",
    },
    measures={
        "test_accuracy": "metric:test/accuracy",
        "test_fgsm_accuracy": "metric:test/fgsm_accuracy",
        "test_pgd_accuracy": "metric:test/pgd_accuracy",
        "test_expected_pgd_accuracy": "metric:test/expected_pgd_accuracy",
        "test_quiet_accuracy": "metric:test/quiet_accuracy",
        "test_quiet_pgd_accuracy": "metric:test/quiet_pgd_accuracy",
        "test_noise_level": "metric:test/noise_level",
        "test_noise_colour": "metric:test/noise_colour",
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
_NAMED = (REGRESSION, SYNTHETIC_GRADIENTS, FINANCE, FORCES, EVOLUTION, COLORED_NOISE)
_BY_EXPERIMENT = {layout.name: layout for layout in _NAMED}
_BY_EXPERIMENT["band_limits"] = BAND_LIMITS


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
        if name in _BY_EXPERIMENT:
            return _BY_EXPERIMENT[name]
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
