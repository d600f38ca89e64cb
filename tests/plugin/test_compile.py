"""The student's call, its derivatives and its terms as one compiled graph."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    CompileSettings,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from tests.plugin._students import ManualRegressor, Regressor, SilentSelf, mlp
from tests.plugin._trainers import as_loader, fit, points, weights

TERMS = {
    "rows": [SobolevTerm(num_projections=2)],
    "columns": [SobolevTerm(side="tangent", num_projections=2)],
    "order 2": [SobolevTerm(order=2)],
    "exact": [SobolevTerm(projection="basis", num_projections=None, discrepancy="huber")],
    "a fraction of the rows": [SobolevTerm(rows=0.5, side="tangent"), SobolevTerm(order=0)],
    "some steps": [SobolevTerm(every_n_steps=2), SobolevTerm(order=0)],
    "fisher": [SobolevTerm(projection="fisher")],
}
TRACED = CompileSettings(backend="aot_eager")


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def taught(module, terms=None, **options):
    spec = SobolevSpec(
        terms=TERMS["rows"] if terms is None else terms,
        on="log_softmax" if terms is TERMS["fisher"] else "identity",
    )
    options = {"teacher": mlp(seed=7), "compile": TRACED, **options}
    callback = SobolevCallback(spec=spec, **options)
    fit(module, points(), callback)
    return weights(module)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x, *, scale=1.0):
        return {"out": self.body(x.double()) * scale}


class ByName(Regressor):
    def forward(self, x):
        return self.net(x, scale=2.0)["out"]


QUICK = ("rows", "columns")


def trains_as_the_tape_does(kind, **options):
    terms = TERMS[kind]
    expected = taught(Regressor(), terms, engine="tape", compile=False)
    assert_close(taught(Regressor(), terms, **options), expected)


@pytest.mark.parametrize("kind", QUICK)
def test_it_trains_as_the_tape_does(kind):
    trains_as_the_tape_does(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TERMS if kind not in QUICK])
def test_so_does_every_term(kind):
    trains_as_the_tape_does(kind)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ManualRegressor, SilentSelf, lambda: ByName(Normed().double())])
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_whatever_the_module_looks_like(make, kind):
    expected = taught(make(), TERMS[kind], engine="tape", compile=False)
    assert_close(taught(make(), TERMS[kind]), expected)


def whole():
    return torch.compile(Regressor(), backend="aot_eager")


def child():
    module = Regressor()
    module.net = torch.compile(module.net, backend="aot_eager")
    return module


def child_in_place():
    module = Regressor()
    module.net.compile(backend="aot_eager")
    return module


@pytest.mark.parametrize(
    "make", [whole, *(pytest.param(m, marks=pytest.mark.slow) for m in (child, child_in_place))]
)
def test_a_module_that_is_compiled_already_is_compiled_with_its_terms(make, monkeypatch):
    monkeypatch.setattr(CompileSettings, "options", lambda _: TRACED_OPTIONS)
    expected = taught(Regressor(), engine="tape", compile=False)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_close(taught(make(), engine="func", compile=None), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


TRACED_OPTIONS = {"backend": "aot_eager", "dynamic": False, "fullgraph": True}


@pytest.mark.slow
def test_a_teacher_that_is_a_formula_stays_outside():
    teacher = AnalyticTeacher(lambda x: x[:, :2].sin())
    expected = taught(Regressor(), teacher=teacher, compile=False)
    assert_close(taught(Regressor(), teacher=teacher), expected)


@pytest.mark.slow
def test_dropout_draws_the_masks_of_the_eager_step():
    def net():
        return nn.Sequential(mlp(), nn.Dropout(0.5))

    torch.manual_seed(0)
    expected = taught(Regressor(net()), engine="tape", compile=False)
    torch.manual_seed(0)
    assert_close(taught(Regressor(net())), expected)


def counted(module, batches, **options):
    callback = SobolevCallback(mlp(seed=7), compile=TRACED, doctor=False, **options)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    fit(module, as_loader(batches), callback)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs


def test_there_is_one_graph_for_each_shape():
    x, y = torch.randn(8, 3).double(), torch.zeros(8, 2).double()
    batches = [(x[:n], y[:n]) for n in (8, 8, 5, 8, 5, 8)]
    assert counted(Regressor(), batches) == 2


@pytest.mark.slow
def test_a_process_may_fit_as_often_as_it_likes():
    batches = [(torch.ones(4, 3).double(), torch.zeros(4, 2).double())]
    assert [counted(Regressor(), batches) for _ in range(10)] == [1] * 10


class Counts(nn.Module):
    """Gives a compiler a new reason to compile at every call."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = mlp(), 0

    def forward(self, x):
        self.calls += 1
        return self.body(x) * (1.0 if self.calls > 0 else 0.0)


@pytest.mark.slow
def test_more_graphs_than_shapes_are_said():
    batches = [(torch.ones(4, 3).double(), torch.zeros(4, 2).double())] * 4
    with pytest.warns(UserWarning, match="compile: [0-9]+ graphs for 1 shapes of the input"):
        counted(Regressor(Counts()), batches)


@pytest.mark.parametrize("engine", ["vjp", "jvp"])
def test_a_compiler_that_lies_is_found_out(engine, monkeypatch):
    def backend(graph, _):
        return lambda *args: [
            out * 1.01 if isinstance(out, torch.Tensor) and out.is_floating_point() else out
            for out in graph.forward(*args)
        ]

    monkeypatch.setattr(
        CompileSettings, "options", lambda _: {"backend": backend, "fullgraph": True}
    )
    text = r"term 'order_1' must agree with the eager one to 1e-09, got [\d.]+ compiled and [\d.]+"
    with pytest.raises(ValueError, match=text):
        taught(Regressor(), TERMS["rows" if engine == "vjp" else "columns"])


class Prints(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        torch._dynamo.graph_break()
        return self.body(x)


def test_what_does_not_compile_is_refused_and_says_how_to_go_on():
    with pytest.raises(
        RuntimeError, match=r"one graph; .*'tape'.*torch says: Call to `torch._dynamo"
    ):
        taught(Regressor(Prints()))


@pytest.mark.slow
def test_it_falls_back_to_the_tape_only_when_told_to():
    settings = CompileSettings(backend="aot_eager", uncompilable="tape")
    with pytest.warns(UserWarning, match="compile: given up for engine='tape'"):
        found = taught(Regressor(Prints()), compile=settings)
    assert_close(found, taught(Regressor(Prints()), engine="tape", compile=False))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compile": "yes"}, "compile must be True, False or CompileSettings, got 'yes'"),
        ({"compile": True, "engine": "tape"}, "compile needs engine='func' or 'auto', got engine="),
    ],
)
def test_what_cannot_be_meant_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SobolevCallback(mlp(), **options)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="uncompilable must be 'raise' or 'tape', got 'no'"):
        CompileSettings(uncompilable="no")
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        CompileSettings(tolerance=0.0)


def test_parameters_in_half_precision_are_refused():
    module = Regressor(mlp().bfloat16())
    with pytest.raises(ValueError, match="compile needs parameters in at least float32"):
        fit(module, points(), SobolevCallback(mlp(), compile=True), precision="bf16-true")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TERMS)
def test_inductor_trains_as_the_tape_does(kind):
    trains_as_the_tape_does(kind, compile=True)


@pytest.mark.slow
def test_the_step_of_a_mixed_trainer_is_compiled_as_it_is():
    def run(**options):
        module = Regressor(mlp().float())
        spec = SobolevSpec(terms=TERMS["rows"])
        data = [(x.float(), y.float()) for x, y in points()]
        callback = SobolevCallback(mlp(seed=7).float(), spec, inner_precision="step", **options)
        fit(module, as_loader(data), callback, precision="bf16-mixed")
        return weights(module)

    assert_close(run(compile=TRACED), run(engine="func", compile=False), rtol=2e-2, atol=1e-3)
