import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.atari import ModulePolicy, fingerprint
from lightning_sobolev.functional.derivatives import value_and_vjp
from tests.atari._foreign import CleanRLPPO, seeded


class Answers(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.fixture
def x(generator):
    return torch.rand(2, 4, 84, 84, generator=generator, dtype=torch.float64)


def test_derivatives_are_with_respect_to_unit_scale(x, generator):
    original = seeded(CleanRLPPO).double()
    policy = ModulePolicy(original, input_scale=255.0)
    cotangents = torch.randn(1, 2, 6, generator=generator, dtype=torch.float64)
    expected, slopes = value_and_vjp(original, 255 * x, cotangents, engine="tape")
    values, rows = value_and_vjp(policy, x, cotangents, engine="tape")
    assert_close(values, expected)
    assert_close(rows, 255 * slopes)


def test_first_number_of_a_larger_answer_is_the_logits(x):
    original = seeded(CleanRLPPO).double()
    pair = Answers(lambda x: {"mask": x > 0, "logits": original(x), "value": x.mean((1, 2, 3))})
    assert_close(ModulePolicy(pair)(x), original(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="module must return logits, got a tuple"):
        ModulePolicy(Answers(lambda _: ()))(x)


def test_scale_is_a_part_of_the_identity():
    original = seeded(CleanRLPPO)
    prints = {fingerprint(ModulePolicy(original, scale)) for scale in (1.0, 255.0)}
    assert len(prints) == 2


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"module must be a torch\.nn\.Module, got function"):
        ModulePolicy(lambda x: x)
    with pytest.raises(ValueError, match=r"input_scale must be a positive number, got 0"):
        ModulePolicy(nn.Identity(), input_scale=0)
