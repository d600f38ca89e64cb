import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher
from lightning_sobolev.spec import OUTPUT_MAPS
from tests._reference import dense_jacobian

IDENTITY = OUTPUT_MAPS["identity"]


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
    jet = NetworkTeacher(net).at(x, OUTPUT_MAPS[on])
    mapped = lambda p: OUTPUT_MAPS[on](net(p))  # noqa: E731
    assert_close(jet.value, mapped(x))
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, dense_jacobian(mapped, x)))


def test_the_network_is_frozen_and_stays_in_eval_mode(x):
    teacher = NetworkTeacher(network())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    teacher.network.train()  # as a module that holds it would do
    first, second = (teacher.at(x, IDENTITY).value for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)
    assert not first.requires_grad


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
    jet = teacher.at(x, IDENTITY)
    assert jet.value.dtype == torch.float64
    assert_close(jet.value, teacher.network(x.float()).double(), rtol=0, atol=0)
    assert jet.vjp(torch.ones(1, 4, 2, dtype=torch.float64)).dtype == torch.float64


def test_autocast_around_it_does_not_reach_it(x):
    teacher = NetworkTeacher(network(torch.float32))
    expected = teacher.at(x.float(), IDENTITY).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(teacher.at(x.float(), IDENTITY).value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_answers_without_gradients_around(mode, x):
    teacher = NetworkTeacher(network())
    u = torch.ones(1, 4, 2, dtype=torch.float64)
    expected = teacher.at(x, IDENTITY).vjp(u)
    with mode():
        assert_close(teacher.at(x.clone(), IDENTITY).vjp(u), expected)


@pytest.mark.parametrize(("output", "power"), [(None, 2), ("hidden", 2), ("heads.1", 1)])
def test_output_selects_among_several(output, power, x):
    net = Headed()
    jet = NetworkTeacher(net, output=output).at(x, IDENTITY)
    assert_close(jet.value, net.body(x).pow(power))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("logits", r"the teacher's output: no 'logits' here; got a dict with keys \['hidden'"),
        ("heads", r"the teacher's output must be a tensor, got a tuple"),
    ],
)
def test_an_output_that_does_not_exist(output, text, x):
    with pytest.raises(ValueError, match=text):
        NetworkTeacher(Headed(), output=output).at(x, IDENTITY)


def test_a_network_without_a_real_output(x):
    class Decides(nn.Module):
        def forward(self, x):
            return x.argmax(-1)

    with pytest.raises(ValueError, match="must hold a floating-point tensor, got a tensor"):
        NetworkTeacher(Decides()).at(x, IDENTITY)


def test_a_network_must_be_a_module():
    with pytest.raises(ValueError, match=r"network must be a torch.nn.Module, got function"):
        NetworkTeacher(lambda x: x)


def test_to_moves_the_network():
    teacher = NetworkTeacher(network())
    assert teacher.to("meta") is teacher
    assert next(teacher.network.parameters()).is_meta
