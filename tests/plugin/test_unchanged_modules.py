"""Parameter gradients of the term on modules that were not written for it.

Each is the weight change of one real training step against central differences of a value that
is computed without any double backward.
"""

import pytest
import torch
from torch.testing import assert_close

from tests.plugin import _architectures, _demos
from tests.plugin._demos import PIECEWISE_LINEAR
from tests.plugin._gradients import TERMS, compare

CASES = {**_architectures.CASES, **_demos.SMOOTH}
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def build(make):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return make()


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("name", CASES)
def test_gradient_agrees_with_finite_differences(name, kind):
    trained, expected = compare(build(CASES[name]), TERMS[kind])
    assert_close(trained, expected, **CLOSE)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["vjp", "jvp"])
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_gradient_agrees_where_the_student_is_piecewise_linear(name, kind):
    trained, expected = compare(build(PIECEWISE_LINEAR[name]), TERMS[kind])
    assert_close(trained, expected, **CLOSE)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("name", [n for n in PIECEWISE_LINEAR if "dropout" not in n])
def test_order_2_of_a_piecewise_linear_student_warns(name):
    with pytest.warns(UserWarning, match="exactly zero on this batch.*Use a smooth activation"):
        trained, _ = compare(build(PIECEWISE_LINEAR[name]), TERMS["order 2"])
    assert_close(trained, torch.zeros_like(trained), rtol=0, atol=1e-12)


FUNC = ["calls self", "calls twice, all count", "dict batch", "layer norm", "transformer encoder",
        "resnet, batch norm in eval", "resnet, instance norm", "embedding"]  # fmt: skip


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("name", FUNC)
def test_the_func_engine_agrees_too(name, kind):
    trained, expected = compare(build(CASES[name]), TERMS[kind], engine="func")
    assert_close(trained, expected, **CLOSE)
