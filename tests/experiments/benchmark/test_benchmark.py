"""What the benchmark compares does the same work, and its counts are right."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.experiments.benchmark import report
from lightning_sobolev.experiments.benchmark.methods import METHODS
from lightning_sobolev.experiments.benchmark.models import WORKLOADS, Workload, perceptron, pixels
from lightning_sobolev.experiments.benchmark.report import run_speed, write_table
from lightning_sobolev.experiments.benchmark.timing import (
    REFERENCES,
    Contestant,
    StepTimes,
    limits,
    measure,
)
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.plugin import step

SMALL = perceptron(6, width=8)
PIXELS = pixels(2)
KEYS = {
    "network", "batch", "device", "method", "median_seconds", "ratio_to_plain", "ratio_to_limit",
    "peak_bytes", "flops",
}  # fmt: skip
# Multiplications and additions of every layer in one forward pass of one row.
PLACES = (20 * 20 * 32 * 4 * 64, 9 * 9 * 64 * 32 * 16, 7 * 7 * 64 * 64 * 9, 3136 * 512, 3072)
LAYERS = {
    "mlp": lambda width, outputs: [2 * width * n for n in (2, width, outputs)],
    "nature_cnn": [2 * count for count in PLACES],
}


@pytest.fixture(autouse=True)
def _talk_as_before():
    talker = logging.getLogger("lightning.pytorch")
    level = talker.level
    yield
    talker.setLevel(level)


def by_formula(layers, *, linear_output):
    """Count a step: a backward pass costs the layers once for weights and once for inputs.

    A second one through the student's rows costs one more for the rows, one for their gradient in
    the weights and one for that in the cotangents of the layers, less the last one's if the output
    map is linear: its cotangent is constant. The teacher's rows need two passes.
    """
    forward, first = sum(layers), layers[0]
    plain = 3 * forward - first
    twice = 3 * forward - (layers[-1] if linear_output else 0)
    return {"plain": plain, "distillation": plain + forward, "at_best": plain + 2 * forward + twice}


def contestant(name, workload=SMALL, folder=None):
    return Contestant(workload, METHODS[name].build(workload, folder))


@pytest.mark.parametrize(
    ("workload", "layers"),
    [
        (SMALL, LAYERS["mlp"](8, 1)),
        (perceptron(5, outputs=3), LAYERS["mlp"](256, 3)),
        (PIXELS, LAYERS["nature_cnn"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_formula_and_counter_agree(workload, layers):
    layers = [workload.batch_size * count for count in layers]
    expected = by_formula(layers, linear_output=workload.on == "identity")
    assert {name: contestant(name, workload).flops() for name in expected} == expected


def test_the_callback_does_nothing_twice():
    assert contestant("tape", PIXELS).flops() == contestant("at_best", PIXELS).flops()
    assert contestant("func", PIXELS).flops() == contestant("at_best", PIXELS).flops()
    assert contestant("as_usual", PIXELS).flops() > contestant("at_best", PIXELS).flops()


def test_the_limits():
    layers = LAYERS["nature_cnn"]
    fewest = limits(*by_formula(layers, linear_output=False).values())
    assert fewest["derivative"] / fewest["distillation"] == pytest.approx(2.09, abs=0.01)
    assert fewest["rows"] / fewest["distillation"] == pytest.approx(1 + 0.25 * 1.09, abs=0.01)
    # Without the teacher's two passes the student's three are left beside its plain step.
    assert fewest["cached"] - fewest["plain"] == 3 * sum(layers)


@pytest.mark.parametrize(
    "method", ["as_usual", "over_outputs", "by_jacrev", "tape", "func", "at_best_compiled"]
)
def test_all_ways_of_writing_a_step_have_one_gradient(method):
    """With one output every direction gives the whole Jacobian, up to its sign."""
    found = []
    for name in ("at_best", method):
        used = contestant(name)
        used.fit(1)
        found.append({n: p.grad for n, p in used.module.named_parameters()})
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["cached_vjp", "cached_jvp"])
def test_a_cached_teacher_is_not_evaluated(method, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "LARGE", 0)  # small inputs are left their own gradient
    flops = contestant(method, folder=tmp_path).flops()
    assert flops < contestant("at_best").flops()


def test_peak_memory_grows_with_the_batch():
    peaks = [contestant("tape", perceptron(size, width=64)).peak_bytes() for size in (500, 5000)]
    assert peaks[0] >= 500 * 64 * 4
    assert 5 < peaks[1] / peaks[0] < 15


def test_step_times_leave_out_the_warm_up():
    times = StepTimes()
    contestant("plain").fit(5, times)
    assert len(times.seconds) == 5 - 1 - 1  # four whole steps, the first of which warms up
    assert all(0 < seconds < 10 for seconds in times.seconds)


def composed(*overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("benchmark", list(overrides))


def quick(out, *overrides):
    few = ["only=[mlp-100]", "workloads.mlp-100=[tape]"]
    return composed(*few, "rounds=2", "seconds=0.01", f"out={out}", *overrides)


def test_every_workload_and_method_of_the_configuration_exists():
    workloads = composed().workloads
    assert set(workloads) == set(WORKLOADS)
    assert {name for methods in workloads.values() for name in methods} <= set(METHODS)


def test_rows_table_and_chart_are_written_and_kept(tmp_path, monkeypatch):
    table = run_speed(quick(tmp_path))
    rows = json.loads((tmp_path / "speed.json").read_text())
    assert [row["method"] for row in rows] == [*REFERENCES, "tape"]
    assert all(set(row) >= KEYS for row in rows)
    assert (tmp_path / "speed_mlp-100.png").stat().st_size > 1000
    assert sum("| callback, tape |" in line for line in table.read_text().splitlines()) == 1
    monkeypatch.setattr(report, "measure", None)  # what is there is not measured again
    assert run_speed(quick(tmp_path)) == table
    with pytest.raises(TypeError):
        run_speed(quick(tmp_path, "rounds=3"))


def test_a_network_that_a_method_cannot_train_is_said_so(tmp_path):
    normed = lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))  # noqa: E731
    workload = Workload("normed", normed, (2,), 8)
    rows = measure(workload, [*REFERENCES, "func"], quick(tmp_path))
    assert [row["method"] for row in rows] == [*REFERENCES, "func"]
    settings = {"clock": "cpu", "threads": 1, "torch": torch.__version__}
    text = write_table(
        tmp_path / "speed.md", [{**r, "settings": settings} for r in rows]
    ).read_text()
    assert "callback, func: not possible (engine='func' cannot run batch norm in train" in text


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("+workloads.mlp-7=[tape]", "workloads must be among .*'mlp-100'.*, got 'mlp-7'"),
        ("workloads.mlp-100=[magic]", "methods must be among .*'tape'.*, got .'magic'"),
    ],
)
def test_unknown_names_are_refused(override, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        run_speed(composed(override, f"out={tmp_path}"))


def test_the_forward_of_an_encoder_is_counted_without_gradients_too():
    workload = replace(WORKLOADS["transformer-64"], batch_size=2)
    counts = [contestant(name, workload).flops() for name in ("plain", "distillation")]
    # Three passes, less the gradient in the input, and the teacher's one.
    assert counts[1] / counts[0] == pytest.approx(4 / 3, abs=0.05)
