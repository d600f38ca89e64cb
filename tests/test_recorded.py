"""Derivatives without a graph, and those that are zero by right."""

import pytest
import torch
from torch import nn

from lightning_sobolev import SobolevTerm
from lightning_sobolev.functional import tape_jet
from lightning_sobolev.loss.recorded import check_graph, check_linear

FIRST, SECOND = SobolevTerm(), SobolevTerm(order=2)
TRAINED = nn.Linear(2, 1)
FROZEN = nn.Linear(2, 1).requires_grad_(False)
X = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)


def test_a_second_derivative_may_vanish_without_a_graph():
    check_graph(SECOND, torch.zeros(1, 2, 2), TRAINED)  # piecewise linear


@pytest.mark.parametrize(
    ("term", "rows"),
    [(FIRST, torch.zeros(1, 2, 2)), (FIRST, torch.ones(1, 2, 2)), (SECOND, torch.ones(1, 2, 2))],
)
def test_anything_else_without_a_graph_is_refused(term, rows):
    with pytest.raises(ValueError, match=r"must depend on its trained parameters"):
        check_graph(term, rows, TRAINED)


def test_where_nothing_is_trained_no_graph_is_needed():
    check_graph(FIRST, torch.ones(1, 2, 2), FROZEN)


class Cut(torch.autograd.Function):
    """Half of x, whose backward pass records nothing."""

    @staticmethod
    def forward(_, x):
        return 0.5 * x

    @staticmethod
    def backward(_, g):
        return 0.5 * g.detach()


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_a_part_without_a_graph_breaks_the_identity_of_euler(share):
    whole = nn.Linear(2, 2).double()
    jet = tape_jet(lambda x: whole(x) + share * Cut.apply(whole(x)), X, create_graph=True)
    with pytest.raises(ValueError, match="recorded whole"):
        check_linear(FIRST, jet, "float32", whole)
    check_linear(FIRST, tape_jet(whole, X, create_graph=True), "float32", whole)


def test_numbers_that_underflow_prove_nothing():
    whole = nn.Linear(2, 2).double()
    jet = tape_jet(lambda x: 1e-200 * (whole(x) + Cut.apply(whole(x))), X, create_graph=True)
    check_linear(FIRST, jet, "float32", whole)
