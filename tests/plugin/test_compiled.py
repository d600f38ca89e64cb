"""Compiled students run eager while they are taught, and give the same numbers."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points, weights

TERMS = {"cotangent": SobolevTerm(), "order 2": SobolevTerm(order=2)}


@pytest.fixture(autouse=True)
def forget_compiled_code():
    yield
    torch.compiler.reset()


def whole(backend):
    return torch.compile(Regressor(), backend=backend)


def child(backend):
    module = Regressor()
    module.net = torch.compile(module.net, backend=backend)
    return module


def child_in_place(backend):
    module = Regressor()
    module.net.compile(backend=backend)
    return module


def plain_weights(term):
    module = Regressor()
    fit(module, points(), callback(term))
    return weights(module)


def callback(term, **options):
    return SobolevCallback(mlp(seed=7), SobolevSpec(terms=[term]), **options)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("make", [whole, child, child_in_place])
def test_a_compiled_student_equals_the_plain_one(make, kind):
    module = make("aot_eager")
    fit(module, points(), callback(TERMS[kind]))
    assert_close(weights(module), plain_weights(TERMS[kind]))


def test_a_compiled_part_is_named_by_its_name():
    module = child("aot_eager")
    fit(module, points(), callback(TERMS["cotangent"], module="net"))
    assert_close(weights(module), plain_weights(TERMS["cotangent"]))


def test_it_is_compiled_again_afterwards():
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph.forward

    module = child(backend)
    fit(module, points(), callback(TERMS["cotangent"], doctor=False))
    assert not calls
    module.net(torch.zeros(2, 3).double())
    assert calls
