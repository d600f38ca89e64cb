"""Directions with a covariance: the expected term is the trace formula."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.functional import Covariance
from tests._laws import assert_unbiased
from tests.plugin._students import Silent, mlp
from tests.plugin._trainers import fit_one_step

REST = (2, 2)


@pytest.fixture
def law(generator):
    return Covariance(torch.rand(4, generator=generator), torch.randn(2, 4, generator=generator))


def dense(law):
    factor = law.factor.flatten(1)
    return torch.diag(law.diagonal.flatten()) + sum(torch.outer(row, row) for row in factor)


@pytest.mark.parametrize("rest", [(4,), (2, 2)])
def test_draws_have_the_covariance(rest, law, generator):
    shaped = Covariance(law.diagonal.reshape(rest), law.factor.reshape(2, *rest))
    drawn = shaped.draw((2000, *rest), num_projections=3, generator=generator)
    assert drawn.shape == (3, 2000, *rest)
    flat = drawn.reshape(-1, 4)
    assert_unbiased(flat, torch.zeros(4))
    assert_unbiased(flat[:, :, None] * flat[:, None, :], dense(law))


def test_all_components_give_the_sample_covariance(generator):
    rows = torch.randn(30, *REST, generator=generator) @ torch.tensor([[1.0, 0.5], [0.0, 0.2]])
    law = Covariance.of(rows, rank=4)
    assert_close(dense(law), torch.cov(rows.flatten(1).T))


def test_the_diagonal_is_that_of_the_sample_covariance(generator):
    rows = torch.randn(30, 5, generator=generator) * torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0])
    law, sample = Covariance.of(rows, rank=1), torch.cov(rows.T)
    assert_close(dense(law).diagonal(), sample.diagonal())
    top = torch.linalg.eigh(sample)
    expected = top.eigenvalues[-1] * torch.outer(top.eigenvectors[:, -1], top.eigenvectors[:, -1])
    assert_close(law.factor.T @ law.factor, expected)


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_student_learns_along_the_directions_alone(engine):
    """Noise along one input teaches that column of the Jacobian and no other."""
    law = Covariance(torch.tensor([0.0, 1.0, 0.0]))
    term = SobolevTerm(side="tangent", projection=law, normalize="none")
    student, teacher = Silent(nn.Linear(3, 2).double(), lr=0.1), mlp(3, 2)
    before = student.net.weight.detach().clone()
    batch = (torch.randn(8, 3), torch.randn(8, 2))
    callback = SobolevCallback(NetworkTeacher(teacher), SobolevSpec(terms=[term]), engine=engine)
    fit_one_step(student, batch, callback)
    moved = (student.net.weight - before).abs().sum(0)
    assert moved[1] > 0
    assert moved[0] == moved[2] == 0


def test_directions_take_type_and_shape_of_the_input(law, generator):
    drawn = law.draw((3, 4), num_projections=1, generator=generator, dtype=torch.float32)
    assert drawn.dtype == torch.float32
    with pytest.raises(ValueError, match=r"diagonal must be .* \[2, 2\], got \[4\]"):
        law.draw((3, 2, 2), num_projections=1, generator=generator)


def test_what_is_no_covariance_is_refused(law):
    with pytest.raises(ValueError, match="diagonal must be finite and >= 0"):
        Covariance(torch.tensor([1.0, -1.0]))
    with pytest.raises(
        ValueError, match=r"factor must be of shape \[rank, \*\[4\]\], got \[2, 3\]"
    ):
        Covariance(law.diagonal, torch.ones(2, 3))
    with pytest.raises(ValueError, match="rows must be at least 2, got 1"):
        Covariance.of(torch.ones(1, 3), rank=1)
    with pytest.raises(ValueError, match="rank must be from 1 to 2, got 3"):
        Covariance.of(torch.randn(2, 3), rank=3)
    with pytest.raises(ValueError, match="or a Covariance for order 1"):
        SobolevTerm(order=2, projection=law)
    with pytest.raises(ValueError, match="'basis' when num_projections is None"):
        SobolevTerm(projection=law, num_projections=None)
