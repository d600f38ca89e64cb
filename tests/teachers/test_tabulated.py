import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher
from lightning_sobolev.functional import draw
from lightning_sobolev.spec import OUTPUT_MAPS
from lightning_sobolev.teachers import TabulatedJet

IDENTITY = OUTPUT_MAPS["identity"]
NAN = float("nan")


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


SHAPES = [((3,), (2,)), ((2, 3), (4,)), ((3,), ()), ((), (2,)), ((2, 2), (3, 1))]


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_projections_are_contractions(inputs, outputs, randn):
    n, m = torch.Size(inputs).numel(), torch.Size(outputs).numel()
    jacobian, hessian = randn(5, *outputs, *inputs), randn(5, *outputs, *inputs, *inputs)
    u, v = randn(2, 5, *outputs), randn(2, 5, *inputs)
    jet = TabulatedJet(inputs, jacobian=jacobian, hessian=hessian)
    for p in range(2):
        for b in range(5):
            flat_u, flat_v = u[p, b].reshape(m), v[p, b].reshape(n)
            J, H = jacobian[b].reshape(m, n), hessian[b].reshape(m, n, n)
            assert_close(jet.vjp(u)[p, b], (flat_u @ J).reshape(inputs))
            assert_close(jet.jvp(v)[p, b], (J @ flat_v).reshape(outputs))
            curved = torch.einsum("c,cde,e->d", flat_u, H, flat_v)
            assert_close(jet.hvp(u, v)[p, b], curved.reshape(inputs))


def test_a_scalar_output_may_leave_its_axis_out(randn):
    gradient, u = randn(5, 3), randn(2, 5, 1)
    short = TabulatedJet((3,), jacobian=gradient)
    long = TabulatedJet((3,), jacobian=gradient[:, None])
    assert_close(short.vjp(u), long.vjp(u))
    assert_close(short.vjp(u), u * gradient)


@pytest.mark.parametrize(
    ("shape", "directions"),
    [((5, 3, 2), (1, 5, 2)), ((5, 6), (1, 5, 2)), ((5, 4, 3), (1, 5, 2)), ((5,), (1, 5, 2))],
    ids=["transposed", "flattened", "too many outputs", "no axes"],
)
def test_a_jacobian_of_another_shape_is_refused(shape, directions, randn):
    jet = TabulatedJet((3,), jacobian=randn(*shape), source="the batch")
    text = r"jacobian of the batch must have shape \[batch, \*out, \*in\] with \*in = \[3\] and 2"
    with pytest.raises(ValueError, match=text):
        jet.vjp(randn(*directions))


def test_a_hessian_of_another_shape_is_refused(randn):
    jet = TabulatedJet((3,), hessian=randn(5, 3, 3, 2))
    with pytest.raises(ValueError, match=r"hessian .* must have shape \[batch, \*out, \*in, \*in"):
        jet.hvp(randn(1, 5, 2), randn(1, 5, 3))


@pytest.mark.parametrize("name", ["value", "jacobian", "hessian"])
def test_what_is_missing_is_named(name, randn):
    jet = TabulatedJet((3,), source="the batch")
    asked = {
        "value": lambda: jet.value,
        "jacobian": lambda: jet.vjp(randn(1, 5, 2)),
        "hessian": lambda: jet.hvp(randn(1, 5, 2), randn(1, 5, 3)),
    }
    with pytest.raises(ValueError, match=rf"needs {name}=..., but the batch gives no {name}"):
        asked[name]()


def test_an_unknown_entry_hides_only_what_it_enters(generator, randn):
    jacobian = randn(1, 2, 3)
    jacobian[0, 0, 1] = NAN
    jet = TabulatedJet((3,), jacobian=jacobian)
    every = draw("basis", (1, 2), num_projections=None, generator=generator, dtype=torch.float64)
    rows = jet.vjp(every)[:, 0]
    assert_close(rows.isnan(), torch.tensor([[False, True, False], [False, False, False]]))
    assert_close(rows[1], 2**0.5 * jacobian[0, 1])
    columns = jet.jvp(torch.eye(3, dtype=torch.float64)[:, None])
    assert_close(columns[:, 0, 0].isnan(), torch.tensor([False, True, False]))
    assert not columns[:, 0, 1].isnan().any()


def test_opposite_directions_do_not_cancel_what_is_unknown():
    jacobian = torch.tensor([[[NAN], [NAN]]], dtype=torch.float64)
    both = TabulatedJet((1,), jacobian=jacobian).vjp(torch.tensor([[[1.0, -1.0]]]).double())
    assert both.isnan().all()


BATCH = {
    "x": torch.zeros(4, 3),
    "targets": [torch.ones(4, 2), torch.ones(4, 2, 3, dtype=torch.float32)],
    "short": torch.ones(3, 2, 3),
    "scalar": torch.tensor(1.0),
}


def test_a_batch_teacher_reads_key_paths_in_the_students_type():
    teacher = BatchTeacher(jacobian="targets.1", value="targets.0")
    x = torch.zeros(4, 3, dtype=torch.float64)
    jet = teacher.at(x, IDENTITY, BATCH)
    assert jet.value.dtype == torch.float64
    assert_close(jet.vjp(torch.ones(1, 4, 2).double()), torch.full((1, 4, 3), 2.0).double())
    assert teacher.allows_unknown


@pytest.mark.parametrize(
    ("path", "batch", "text"),
    [
        ("forces", BATCH, r"BatchTeacher\(jacobian='forces'\): no 'forces' here; got a dict with"),
        ("targets.7", BATCH, r"no 'targets.7' here; got a list with keys \['0', '1'\]"),
        ("short", BATCH, r"jacobian in the batch must be a tensor with 4 rows, got a tensor \[3"),
        ("scalar", BATCH, r"must be a tensor with 4 rows, got a tensor \[\]"),
        ("targets", BATCH, r"must be a tensor with 4 rows, got a list"),
        ("x", None, r"BatchTeacher needs the batch, but training_step was given none"),
    ],
)
def test_a_batch_teacher_says_what_it_found(path, batch, text):
    with pytest.raises(ValueError, match=text):
        BatchTeacher(jacobian=path).at(torch.zeros(4, 3), IDENTITY, batch)


def test_a_batch_teacher_needs_a_path():
    with pytest.raises(ValueError, match="needs a key path for jacobian, value or hessian"):
        BatchTeacher()
