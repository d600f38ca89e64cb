import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevTerm
from lightning_sobolev._types import Query
from lightning_sobolev.functional import draw
from lightning_sobolev.spec import OUTPUT_MAPS
from lightning_sobolev.teachers import TabulatedJet
from tests._reference import dense_jacobian
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import Learns, mlp
from tests.plugin._trainers import as_loader, points

INF, NAN = float("inf"), float("nan")


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_is_not_finite_enters_with_factors_other_than_zero(dtype):
    rows = [[1.0, 2.0], [INF, 1.0], [NAN, 1.0], [INF, NAN], [-INF, 3.0], [INF, INF]]
    jacobian = torch.tensor(rows, dtype=dtype)[:, None]  # [batch, 1, 2]
    cases = {  # tangent: the product with each row by hand
        (1.0, 1.0): [3.0, INF, NAN, NAN, INF, INF],
        (0.0, 2.0): [4.0, 2.0, 2.0, NAN, 6.0, INF],
        (-1e-4, 0.0): [-1e-4, INF, NAN, INF, INF, INF],
        (0.0, 0.0): [0.0] * 6,
    }
    for tangent, expected in cases.items():
        v = torch.tensor(tangent, dtype=dtype).expand(1, 6, 2)
        found = TabulatedJet((2,), jacobian=jacobian).jvp(v)[0, :, 0]
        assert_close(found, torch.tensor(expected, dtype=dtype), equal_nan=True)
        curved = TabulatedJet((2,), hessian=jacobian[..., None].expand(6, 1, 2, 2).mT)
        ones = torch.ones(1, 6, 1, dtype=dtype)
        products = curved.hvp(ones, v)
        both = torch.tensor(expected, dtype=dtype)[:, None].expand(6, 2)
        assert_close(products[0], both, equal_nan=True)


def test_many_infinite_entries_are_no_unknown_one():
    jacobian = torch.full((1, 1, 5000), INF)
    jet = TabulatedJet((5000,), jacobian=jacobian)
    assert_close(jet.jvp(torch.ones(1, 1, 5000)), torch.full((1, 1, 1), INF))
    jacobian[0, 0, 17] = NAN
    assert jet.jvp(torch.ones(1, 1, 5000)).isnan().all()


def test_no_number_is_read_on_a_device(randn):
    # tensors of the meta device have none
    jet = TabulatedJet(
        (3,), jacobian=randn(5, 2, 3).to("meta"), hessian=randn(5, 2, 3, 3).to("meta")
    )
    u, v = randn(2, 5, 2).to("meta"), randn(2, 5, 3).to("meta")
    assert jet.vjp(u).shape == jet.hvp(u, v).shape == (2, 5, 3)
    assert jet.jvp(v).shape == (2, 5, 2)


BATCH = {
    "x": torch.zeros(4, 3),
    "targets": [torch.ones(4, 2), torch.ones(4, 2, 3, dtype=torch.float32)],
    "short": torch.ones(3, 2, 3),
    "scalar": torch.tensor(1.0),
}


def test_a_batch_teacher_reads_key_paths_in_the_students_type():
    teacher = BatchTeacher(jacobian="targets.1", value="targets.0")
    x = torch.zeros(4, 3, dtype=torch.float64)
    jet = teacher.at(Query(x, batch=BATCH))
    assert jet.value.dtype == torch.float64
    assert_close(jet.vjp(torch.ones(1, 4, 2).double()), torch.full((1, 4, 3), 2.0).double())
    assert teacher.allows_unknown
    assert teacher.directions(Query(x, batch=BATCH), None) is None


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
        BatchTeacher(jacobian=path).at(Query(torch.zeros(4, 3), batch=batch))


def test_a_batch_teacher_needs_a_path():
    with pytest.raises(ValueError, match="needs a key path for jacobian, forces, value or hessian"):
        BatchTeacher()


def test_chosen_rows_are_taken_from_the_whole_batch(randn):
    x, y, jacobian, hessian = randn(6, 3), randn(6, 2), randn(6, 2, 3), randn(6, 2, 3, 3)
    batch, rows = (x, y, jacobian, hessian), torch.tensor([4, 0, 5])
    jet = BatchTeacher(2, value=1, hessian=3).at(Query(x[rows], batch=batch, rows=rows))
    u, v = randn(2, 3, 2), randn(2, 3, 3)
    assert_close(jet.value, y[rows])
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, jacobian[rows]))
    assert_close(jet.hvp(u, v), torch.einsum("pbo,boij,pbj->pbi", u, hessian[rows], v))
    with pytest.raises(ValueError, match=r"jacobian in the batch must be .* at least 6 rows"):
        BatchTeacher(0).at(Query(x[rows], batch=(x[:5], x), rows=rows))
    with pytest.raises(ValueError, match=r"value in the batch must be .* at least 6 rows, .* \[\]"):
        BatchTeacher(value=1).at(Query(x[rows], batch=(x, y.sum()), rows=rows))


def test_arrays_of_several_inputs_are_joined(randn):
    a, b, one, two = randn(5, 2), randn(5, 2, 2), randn(5, 3, 2), randn(5, 3, 2, 2)
    x, batch, u = torch.cat([b.flatten(1), a], 1), (a, b, one, two), randn(2, 5, 3)
    jet = BatchTeacher([3, 2]).at(Query(x, batch=batch))
    expected = torch.cat([two.flatten(2), one], 2)
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, expected))
    with pytest.raises(ValueError, match=r"the arrays of several inputs must be .* with 6"):
        BatchTeacher([0, 2]).at(Query(x, batch=batch))


@pytest.mark.parametrize(
    ("on", "name"), [(torch.tanh, "tanh"), (OUTPUT_MAPS["softmax"], "softmax")]
)
def test_an_output_map_needs_arrays_of_the_mapped_output(on, name, randn):
    x, jacobian, u = randn(5, 3), randn(5, 2, 3), randn(1, 5, 2)
    query = Query(x, on, (x, jacobian))
    text = rf"on must be 'identity' with BatchTeacher, .* got on='{name}'; .*stores_mapped=True"
    with pytest.raises(ValueError, match=text):
        BatchTeacher(1).at(query)
    found = BatchTeacher(1, stores_mapped=True).at(query).vjp(u)
    assert_close(found, torch.einsum("pbo,boi->pbi", u, jacobian))


@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_a_batch_teacher_teaches_step_by_step_along_random_directions(side):
    net, term = mlp(seed=7), SobolevTerm(side=side)
    batches = as_loader([(x, y, dense_jacobian(net, x)) for x, y in points()])
    found = taught(Learns(), term, batches, teacher=BatchTeacher(2), module="net", doctor=False)
    assert_close(found, by_hand(None, term))
