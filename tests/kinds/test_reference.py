"""The references agree with each other, and with the package where a step is an ordinary one."""

import pytest
import torch
from torch.testing import assert_close

from tests.kinds import _reference as reference
from tests.kinds._measure import WAYS, Step, assert_taught, batch, small_net, target


def test_tangents_and_cotangents_give_one_jacobian():
    x, net = batch()[0], small_net()
    assert_close(
        *[reference.term(kind, net, target, x) for kind in ("vjp", "jvp")], rtol=1e-10, atol=0
    )


def test_the_second_derivative_of_a_cubic_is_known():
    x = batch()[0]
    found = reference.derivative("order_2", lambda p: p.pow(3).sum(-1, keepdim=True), x)
    assert_close(found[:, 0], torch.diag_embed(6.0 * x))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_ordinary_step_learns_the_term(way):
    assert_taught(Step, way)
