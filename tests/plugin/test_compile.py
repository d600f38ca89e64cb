"""The student's call, its derivatives and its terms as one compiled graph."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import CompileSettings, SobolevCallback, SobolevTerm
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import as_loader, fit, points

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


def compiled(module, kind="rows", **options):
    on = "log_softmax" if kind == "fisher" else "identity"
    return taught(module, TERMS[kind], on=on, **{"compile": TRACED, **options})


QUICK = ("rows", "columns")


@pytest.mark.parametrize("kind", QUICK)
def test_it_trains_as_the_loop_written_by_hand(kind):
    assert_close(compiled(Regressor(), kind), by_hand(None, *TERMS[kind]))


def test_chosen_rows_are_a_point_of_their_own_to_the_compiler():
    """Left on the graph of the step's own input they do not compile."""
    kind = "a fraction of the rows"
    term, _ = TERMS[kind]
    assert_close(taught(Regressor(), term, compile=TRACED), by_hand(None, term))
    # with a term on all rows beside it; the tape's are compared with references in other files
    assert_close(compiled(Regressor(), kind), taught(Regressor(), TERMS[kind]))


class Stretched(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        self.body = mlp(seed=seed)

    def forward(self, x, by):
        return self.body(by * x)


class Twofold(Stretched):
    def forward(self, x):
        return super().forward(x, 2.0)


class Stretches(Regressor):
    def forward(self, x):
        return self.net(x, torch.tensor(2.0).double())


def test_a_teacher_is_called_as_the_student_was():
    found = taught(Stretches(Stretched()), module="net", teacher=Stretched(7), compile=TRACED)
    assert_close(found, by_hand(net=Twofold(), teacher=Twofold(7)))


@pytest.mark.slow
@pytest.mark.parametrize("compile", [TRACED, True], ids=["traced", "inductor"])
@pytest.mark.parametrize("kind", TERMS)
def test_every_term_trains_as_on_the_tape(kind, compile):
    expected = compiled(Regressor(), kind, engine="tape", compile=False)
    assert_close(compiled(Regressor(), kind, compile=compile), expected)


def whole():
    return torch.compile(Regressor(), backend="aot_eager")


def child(backend="aot_eager"):
    module = Regressor()
    module.net = torch.compile(module.net, backend=backend)
    return module


def child_in_place():
    module = Regressor()
    module.net.compile(backend="aot_eager")
    return module


@pytest.mark.parametrize(
    "make", [whole, *(pytest.param(m, marks=pytest.mark.slow) for m in (child, child_in_place))]
)
def test_a_module_that_is_compiled_already_is_compiled_with_its_terms(make, monkeypatch):
    traced = {"backend": "aot_eager", "dynamic": False, "fullgraph": True}
    monkeypatch.setattr(CompileSettings, "options", lambda _: traced)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_close(taught(make(), engine="func", compile=None), by_hand())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


@pytest.mark.parametrize("make", [whole, child, child_in_place])
def test_a_compiled_student_runs_eager_on_the_tape(make):
    assert_close(taught(make(), SobolevTerm(order=2)), by_hand(None, SobolevTerm(order=2)))


def test_a_compiled_part_has_its_name_and_is_compiled_again_afterwards():
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph.forward

    module = child(backend)
    assert_close(taught(module, module="net"), by_hand())
    assert not calls
    module.net(torch.zeros(2, 3).double())
    assert calls


@pytest.mark.slow
def test_dropout_draws_the_masks_of_the_eager_step():
    def net():
        return nn.Sequential(mlp(), nn.Dropout(0.5))

    torch.manual_seed(0)
    expected = compiled(Regressor(net()), engine="tape", compile=False)
    torch.manual_seed(0)
    assert_close(compiled(Regressor(net())), expected)


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


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_a_compiler_that_lies_is_found_out(kind, monkeypatch):
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
        compiled(Regressor(), kind)


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
        compiled(Regressor(Prints()))


@pytest.mark.slow
def test_it_falls_back_to_the_tape_only_when_told_to():
    settings = CompileSettings(backend="aot_eager", uncompilable="tape")
    with pytest.warns(UserWarning, match="compile: given up for engine='tape'"):
        assert_close(taught(Regressor(Prints()), compile=settings), by_hand())


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
