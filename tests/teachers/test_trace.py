"""Laws of Laplacians and other traces of the Hessian, against the dense Hessian."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import SobolevTerm, TraceTeacher
from tests._laws import assert_unbiased
from tests._reference import dense_hessian, parameter_gradients_by_differences
from tests.teachers._labels import Energy, Graphs, evaluated, flat_hessians

NAN = float("nan")
ENGINES = pytest.mark.parametrize("engine", ["tape", "func"])
MATRICES = {
    "laplacian": None,
    "space alone": torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64),
    "wave": torch.tensor([1.0, 1.0, -4.0], dtype=torch.float64),
    "any": torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 3.0]], dtype=torch.float64),
}


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=MATRICES)
def matrix(request):
    return MATRICES[request.param]


def traces(net, x, matrix):
    matrix = torch.ones(3, dtype=x.dtype) if matrix is None else matrix
    matrix = matrix.diag() if matrix.ndim == 1 else matrix
    return torch.einsum("ij,bji->b", matrix, dense_hessian(net, x))


@pytest.fixture
def batch(randn, matrix):
    x = randn(4, 3)
    return {"x": x, "t": traces(Energy(seed=1), x, matrix)}


def plain(teacher):
    """Return the teacher's own term, not divided by a scale."""
    own = teacher.default_term
    return SobolevTerm(order=2, projection=own.projection, num_projections=own.num_projections,
                       discrepancy=own.discrepancy, normalize="none")  # fmt: skip


@ENGINES
def test_exact_traces_are_matched(batch, matrix, engine):
    net, teacher = Energy(), TraceTeacher("t", matrix)
    true, gradients = evaluated(teacher, Energy(seed=1), batch, engine=engine)
    assert_close(true, torch.zeros_like(true))
    assert_close(gradients, tuple(map(torch.zeros_like, gradients)))
    batch["t"][1] = NAN

    def hand():
        error = (traces(net, batch["x"], matrix) - batch["t"])[[0, 2, 3]]
        return error.square().mean()

    found, gradients = evaluated(teacher, net, batch, terms=plain(teacher), engine=engine)
    assert_close(found, hand().detach())
    expected = parameter_gradients_by_differences(hand, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("matrix", ["laplacian", "any"], indirect=True)
@pytest.mark.parametrize(("engine", "probes"), [("tape", 2), ("func", 3)])
def test_products_of_estimates_have_the_exact_expectation(batch, matrix, engine, probes):
    """Of the term, and of its gradient; zero at the right student."""
    exact, random = TraceTeacher("t", matrix), TraceTeacher("t", matrix, probes=probes)
    for net in (Energy(), Energy(seed=1)):
        expected, slopes = evaluated(exact, net, batch, terms=plain(exact), engine=engine)
        found = [
            evaluated(random, net, batch, terms=plain(random), engine=engine, counter=step)
            for step in range(60)
        ]
        assert_unbiased(torch.stack([value for value, _ in found]), expected)
        flat = [torch.cat([g.flatten() for g in gradients]) for _, gradients in found]
        assert_unbiased(torch.stack(flat), torch.cat([g.flatten() for g in slopes]))


def test_squares_of_one_estimate_are_biased_and_refused(batch, matrix):
    teacher = TraceTeacher("t", matrix, probes=2)
    for term in (
        SobolevTerm(order=2),
        SobolevTerm(order=2, num_projections=3),
        SobolevTerm(order=2, discrepancy="product", num_projections=2, projection="basis"),
        SobolevTerm(),
    ):
        with pytest.raises(ValueError, match="the square of a random estimate's error is biased"):
            evaluated(teacher, Energy(), batch, terms=term)


@ENGINES
def test_traces_of_graphs_of_different_size(randn, engine):
    index, pos, net = torch.tensor([0, 1, 1, 0, 1, 2]), randn(6, 2), Graphs()

    def hand_traces(student):
        return torch.stack([h.trace() for h in flat_hessians(student, pos, index)])

    batch = {"x": pos, "batch": index, "t": hand_traces(Graphs(seed=1))}
    where = {"groups": "batch", "engine": engine}
    exact, random = TraceTeacher("t"), TraceTeacher("t", probes=2)
    true, _ = evaluated(exact, Graphs(seed=1), batch, "x", "batch", **where)
    assert_close(true, torch.zeros_like(true))
    hand = lambda: (hand_traces(net) - batch["t"]).square().mean()  # noqa: E731
    found, gradients = evaluated(exact, net, batch, "x", "batch", terms=plain(exact), **where)
    assert_close(found, hand().detach())
    expected = parameter_gradients_by_differences(hand, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)
    some = [
        evaluated(random, net, batch, "x", "batch", terms=plain(random), counter=n, **where)[0]
        for n in range(60)
    ]
    assert_unbiased(torch.stack(some), found)
    part = SobolevTerm(order=2, rows=0.6, projection="basis", num_projections=None)
    true, _ = evaluated(exact, Graphs(seed=1), batch, "x", "batch", terms=part, groups="batch")
    assert_close(true, torch.zeros_like(true))


def test_what_does_not_fit_is_refused(randn):
    x = randn(4, 3)
    batch = {"x": x, "t": randn(4)}
    with pytest.raises(ValueError, match="probes must be at least 2 or None, got 1"):
        TraceTeacher("t", probes=1)
    with pytest.raises(ValueError, match=r"matrix must be \[D, D\] or \[D\]"):
        TraceTeacher("t", torch.ones(2, 3))
    with pytest.raises(ValueError, match="matrix must be other than zero"):
        TraceTeacher("t", torch.zeros(3))
    with pytest.raises(ValueError, match="matrix must be of 3 input elements, got 2"):
        evaluated(TraceTeacher("t", torch.ones(2)), Energy(), batch)
    with pytest.raises(ValueError, match=r"trace must be .*batch.*got .4, 3."):
        evaluated(TraceTeacher("x"), Energy(), batch)
    with pytest.raises(ValueError, match="are those of a scalar output"):
        evaluated(TraceTeacher("t"), Energy(outputs=2), batch)


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (torch.full((3, 3), NAN), "matrix must be finite, got"),
        (torch.tensor([1.0, float("inf"), 1.0]), "matrix must be finite, got"),
        (torch.zeros(0), r"matrix must be \[D, D\] or \[D\], got \[0\]"),
        (torch.ones(()), r"matrix must be \[D, D\] or \[D\], got \[\]"),
        ("laplacian", "matrix must be a matrix, got 'laplacian'"),
    ],
)
def test_what_is_no_matrix(matrix, text):
    with pytest.raises(ValueError, match=text):
        TraceTeacher("t", matrix)


def test_a_matrix_may_be_a_list():
    x, net = torch.eye(3, dtype=torch.float64), Energy()
    batch = {"x": x, "t": traces(net, x, torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))}
    found, _ = evaluated(TraceTeacher("t", [1, 0, 2]), net, batch)
    assert_close(found, torch.zeros_like(found))
