import inspect
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher, SobolevTerm
from lightning_sobolev._types import Query
from lightning_sobolev.spec import OUTPUT_MAPS
from tests._reference import dense_jacobian
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import Regressor, mlp


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).to(dtype)


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        y = self.body(x)
        return {"hidden": y.square(), "heads": (y.argmax(-1), y)}


@pytest.fixture
def x(generator):
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("on", ["identity", "log_softmax", "softmax"])
def test_answers_agree_with_the_dense_jacobian_of_the_output_map(on, x, generator):
    net, u = network(), torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    jet = NetworkTeacher(net).at(Query(x, OUTPUT_MAPS[on]))
    mapped = lambda p: OUTPUT_MAPS[on](net(p))  # noqa: E731
    assert_close(jet.value, mapped(x))
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, dense_jacobian(mapped, x)))


def test_the_network_is_frozen():
    net = network()
    teacher = NetworkTeacher(net)
    assert teacher.network is net
    assert teacher.was_trainable
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(module.training for module in net.modules())
    assert not NetworkTeacher(net).was_trainable


def test_it_answers_in_eval_mode_and_leaves_modes_as_they_were(x):
    net = network()
    teacher = NetworkTeacher(net)
    expected = net(x)
    net[2].train()  # as a module that holds it would do; the rest stays in eval mode
    modes = [module.training for module in net.modules()]
    assert_close(teacher.at(Query(x)).value, expected, rtol=0, atol=0)
    assert not teacher.at(Query(x)).value.requires_grad
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        teacher.at(Query(x[:, :2]))
    assert [module.training for module in net.modules()] == modes


def test_a_function_for_the_compiler_is_in_eval_mode(x):
    net = network()
    teacher = NetworkTeacher(net)
    expected = net(x).tanh()
    net.train()
    assert_close(teacher.function(torch.tanh, x.dtype)(x), expected, rtol=0, atol=0)
    headed = NetworkTeacher(Headed())
    y = headed.network.body(x)
    assert_close(headed.function(torch.tanh, x.dtype)(x), y.square().tanh())
    assert_close(headed.function(torch.tanh, x.dtype, ("heads", 1))(x), y.tanh())


@pytest.mark.parametrize("build", [network, Headed])
def test_the_compiler_follows_its_function_in_one_graph(build, x):
    teacher = NetworkTeacher(build().double())
    expected = teacher.function(torch.tanh, x.dtype)(x)
    whole = lambda point: teacher.function(torch.tanh, point.dtype)(point)  # noqa: E731
    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    assert_close(compiled(x), expected, rtol=0, atol=0)
    teacher.network.train()
    assert_close(compiled(x), expected, rtol=0, atol=0)


def test_a_tensor_passes_through_few_functions(x):
    teacher, counts = NetworkTeacher(network()), Counter()

    def count(frame, event, _):
        if event == "call":
            counts[Path(frame.f_code.co_filename).name] += 1

    sys.setprofile(count)
    try:
        teacher.at(Query(x))
    finally:
        sys.setprofile(None)
    assert 0 < counts["network.py"] <= 4
    assert counts["_paths.py"] == 0


def test_the_teacher_is_no_module():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = NetworkTeacher(network())

    holder = Holder()
    assert not holder.state_dict()
    assert not list(holder.parameters())
    assert not list(holder.children())


def test_it_answers_in_its_own_precision_and_the_students_type(x):
    teacher = NetworkTeacher(network(torch.float32))
    jet = teacher.at(Query(x))
    assert jet.value.dtype == torch.float64
    assert_close(jet.value, teacher.network(x.float()).double(), rtol=0, atol=0)
    assert jet.vjp(torch.ones(1, 4, 2, dtype=torch.float64)).dtype == torch.float64


def test_an_output_map_is_not_taken_in_half_precision(x):
    teacher = NetworkTeacher(network(torch.bfloat16))
    found = teacher.at(Query(x.float(), OUTPUT_MAPS["softmax"])).value
    y = teacher.network(x.bfloat16())
    assert_close(found, y.float().softmax(-1), rtol=1e-6, atol=0)


def test_autocast_around_it_does_not_reach_it(x):
    teacher = NetworkTeacher(network(torch.float32))
    expected = teacher.at(Query(x.float())).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(teacher.at(Query(x.float())).value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_answers_without_gradients_around(mode, x):
    teacher = NetworkTeacher(network())
    u = torch.ones(1, 4, 2, dtype=torch.float64)
    expected = teacher.at(Query(x)).vjp(u)
    with mode():
        assert_close(teacher.at(Query(x.clone())).vjp(u), expected)


@pytest.mark.parametrize(("output", "power"), [(None, 2), ("hidden", 2), ("heads.1", 1)])
def test_output_selects_among_several(output, power, x):
    net = Headed()
    jet = NetworkTeacher(net, output=output).at(Query(x))
    assert_close(jet.value, net.body(x).pow(power))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("logits", r"the teacher's output: no 'logits' here; got a dict with keys \['hidden'"),
        ("heads", r"the teacher's output must be a floating-point tensor, got a tuple"),
    ],
)
def test_an_output_that_does_not_exist(output, text, x):
    with pytest.raises(ValueError, match=text):
        NetworkTeacher(Headed(), output=output).at(Query(x))


def test_a_network_without_a_real_output(x):
    class Decides(nn.Module):
        def forward(self, x):
            return x.argmax(-1)

    with pytest.raises(
        ValueError, match="must hold a floating-point tensor of 4 rows, got a tensor"
    ):
        NetworkTeacher(Decides()).at(Query(x))


class Conditioned(nn.Module):
    """Takes two arguments beside the observed one and returns a loss first."""

    def __init__(self):
        super().__init__()
        self.body = network()
        self.asked = []

    def forward(self, x, scale, shift=None):
        self.asked.append((scale, shift))
        y = self.body(x) * scale + (0.0 if shift is None else shift)
        return {"loss": y.sum(), "bank": y.new_ones(7, 2), "y": y, "logits": y.square()}


class Call:
    """A student's call, written for the tests."""

    def __init__(self, *args, output=(), **kwargs):
        self.args, self.kwargs, self.output = args, kwargs, output

    def accepts(self, network):
        try:
            inspect.signature(network.forward).bind(*self.args, **self.kwargs)
        except TypeError:
            return False
        return True

    def repeat(self, network, point):
        return network(point, *self.args[1:], **self.kwargs)


SCALE = torch.tensor(3.0, dtype=torch.float64)


@pytest.mark.parametrize("takes", ["auto", "call"])
@pytest.mark.parametrize(("output", "power"), [(("logits",), 2), (("y",), 1)])
def test_it_is_called_as_the_student_and_follows_its_output(takes, output, power, x, generator):
    net, u = Conditioned(), torch.randn(1, 4, 2, generator=generator, dtype=torch.float64)
    call = Call(x, SCALE, shift=1.0, output=output)
    jet = NetworkTeacher(net, takes=takes).at(Query(x + 1, torch.tanh, call=call))
    function = lambda p: (net.body(p) * 3.0 + 1.0).pow(power).tanh()  # noqa: E731
    assert net.asked == [(SCALE, 1.0)]
    assert_close(jet.value, function(x + 1))
    dense = dense_jacobian(function, x + 1)
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, dense))


@pytest.mark.parametrize("output", [(), ("missing",), ("loss",), (0,), ("y", 0)])
def test_an_output_that_it_cannot_follow_is_the_first_with_the_inputs_rows(output, x):
    net = Conditioned()
    jet = NetworkTeacher(net).at(Query(x, call=Call(x, SCALE, output=output)))
    assert_close(jet.value, 3.0 * net.body(x))


def test_its_own_output_comes_before_the_students(x):
    net = Conditioned()
    call = Call(x, SCALE, output=("y",))
    jet = NetworkTeacher(net, output="logits").at(Query(x, call=call))
    assert_close(jet.value, (3.0 * net.body(x)).square())


def test_a_network_with_other_arguments_is_called_with_the_input_alone(x):
    net, call = network(), Call(x, SCALE, shift=1.0, output=("y",))
    for teacher in (NetworkTeacher(net), NetworkTeacher(net, takes="input")):
        assert_close(teacher.at(Query(x, call=call)).value, net(x))


def test_the_input_alone_where_it_was_asked_for(x):
    class Scaled(nn.Module):
        def forward(self, x, scale=1.0):
            return x.sin() * scale

    call = Call(x, SCALE)
    assert_close(NetworkTeacher(Scaled()).at(Query(x, call=call)).value, 3 * x.sin())
    alone = NetworkTeacher(Scaled(), takes="input")
    assert_close(alone.at(Query(x, call=call)).value, x.sin())


def test_a_call_that_is_missing_or_does_not_fit_is_named(x):
    with pytest.raises(ValueError, match=r"takes='call' needs the student's call .* got call=None"):
        NetworkTeacher(Conditioned(), takes="call").at(Query(x))
    with pytest.raises(ValueError, match="takes must be 'auto', 'input' or 'call', got 'all'"):
        NetworkTeacher(network(), takes="all")
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3"):
        NetworkTeacher(network(), takes="call").at(Query(x, call=Call(x, SCALE)))


def test_quantized_weights_do_not_choose_the_precision(x):
    net = network(torch.float32)
    net.register_parameter("packed", nn.Parameter(torch.zeros(3).byte(), requires_grad=False))
    net.double()
    jet = NetworkTeacher(net).at(Query(x.float()))
    assert jet.value.dtype == torch.float32
    assert_close(jet.value, net(x.float().double()).float(), rtol=0, atol=0)


def test_a_network_must_be_a_module():
    with pytest.raises(ValueError, match=r"network must be a torch.nn.Module, got function"):
        NetworkTeacher(lambda x: x)


def test_to_moves_the_network():
    teacher = NetworkTeacher(network())
    assert teacher.to("meta") is teacher
    assert next(teacher.network.parameters()).is_meta


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_it_teaches_step_by_step_along_random_directions(engine):
    teacher, term = NetworkTeacher(mlp(seed=7)), SobolevTerm(order=2)
    found = taught(Regressor(), term, teacher=teacher, engine=engine, doctor=False)
    assert_close(found, by_hand(None, term))
