import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import (
    AdjointTeacher,
    DirectionalTeacher,
    MixedTeacher,
    SobolevLoss,
    SobolevTerm,
)
from lightning_sobolev._types import Query
from tests._reference import dense_jacobian
from tests.teachers._labels import Energy, evaluated

TERM = SobolevTerm(side="tangent")
NAN = float("nan")


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def answers(query, teacher=None):
    teacher = DirectionalTeacher("v", "jv", value="y") if teacher is None else teacher
    given = teacher.directions(query, TERM)
    assert given.cotangents is None
    return given.tangents, given.target, teacher.at(query)


@pytest.mark.parametrize("shape", [(3,), (2, 2), ()])
@pytest.mark.parametrize("proj", [None, 1, 3])
def test_the_batchs_directions_come_with_their_derivatives(proj, shape, randn):
    several = () if proj is None else (proj,)
    x, v, jv, y = randn(5, *shape), randn(5, *several, *shape), randn(5, *several, 2), randn(5, 2)
    batch = {"x": x, "v": v, "jv": jv, "y": y}
    whole = {name: array[:, None] if proj is None else array for name, array in batch.items()}
    tangents, pushed, jet = answers(Query(x, batch=batch))
    assert_close(tangents, whole["v"].movedim(1, 0))
    assert_close(pushed, whole["jv"].movedim(1, 0))
    assert_close(jet.value, y)
    rows = torch.tensor([4, 1])
    tangents, pushed, jet = answers(Query(x[rows], batch=batch, rows=rows))
    assert_close(tangents, whole["v"][rows].movedim(1, 0))
    assert_close(pushed, whole["jv"][rows].movedim(1, 0))
    assert_close(jet.value, y[rows])


def test_what_is_unknown_is_pushed_along_nothing_and_left_out(randn):
    x, v, jv = randn(3, 4), randn(3, 2, 4), randn(3, 2, 2)
    v[0, 1, 2], jv[1, 0, 1] = NAN, NAN
    tangents, pushed, _ = answers(Query(x, batch=(x, v, jv)), DirectionalTeacher(1, 2))
    assert_close(tangents[1, 0], torch.where(v[0, 1].isnan(), 0.0, v[0, 1]))
    unknown = torch.zeros(2, 3, 2).bool()
    unknown[1, 0], unknown[0, 1, 1] = True, True
    assert_close(pushed.isnan(), unknown)
    assert_close(pushed[~unknown], jv.movedim(1, 0)[~unknown])


def test_it_needs_no_spec():
    term = DirectionalTeacher("v", "jv").default_term
    assert (term.order, term.side, term.weight) == (1, "tangent", 1.0)
    assert DirectionalTeacher("v", "jv").allows_unknown


def test_other_terms_are_refused(randn):
    x = randn(5, 3)
    teacher, query = DirectionalTeacher(0, 0), Query(x, batch=(x,))
    for term in (SobolevTerm(), SobolevTerm(order=2)):
        with pytest.raises(ValueError, match="must be of order 1 with side='tangent', of which"):
            teacher.directions(query, term)
    with pytest.raises(ValueError, match="must be of order 2 with side='cotangent', of which"):
        DirectionalTeacher(0, 0, order=2).directions(query, TERM)
    assert teacher.directions(query, SobolevTerm(order=0)) is None
    with pytest.raises(ValueError, match=r"order-0 term needs value=.*the batch gives no value"):
        teacher.at(query).value  # noqa: B018


def test_other_shapes_are_refused(randn):
    x = randn(5, 3)
    for other in (randn(5, 2), randn(5), randn(5, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"tangents must have shape \[batch, \*in\]"):
            DirectionalTeacher(1, 1).directions(Query(x, batch=(x, other)), TERM)
    batch = (x, randn(5, 2, 3), randn(5, 3, 2))
    with pytest.raises(ValueError, match="one derivative for each of 2 tangents"):
        DirectionalTeacher(1, 2).directions(Query(x, batch=batch), TERM)
    with pytest.raises(ValueError, match=r"DirectionalTeacher\(pushed='2'\): no '2' here"):
        DirectionalTeacher(1, 2).directions(Query(x, batch=(x, x)), TERM)
    with pytest.raises(ValueError, match="DirectionalTeacher needs the batch"):
        DirectionalTeacher(1, 2).directions(Query(x), TERM)


def test_an_output_map_needs_derivatives_of_the_mapped_output(randn):
    x = randn(5, 3)
    query = Query(x, torch.tanh, (x, randn(5, 2)))
    with pytest.raises(
        ValueError, match=r"on must be 'identity' with DirectionalTeacher, .*='tanh'"
    ):
        DirectionalTeacher(0, 1).at(query)
    _, pushed, _ = answers(query, DirectionalTeacher(0, 1, stores_mapped=True))
    assert_close(pushed[0], query.batch[1])


@pytest.mark.parametrize("proj", [None, 3])
def test_adjoint_pairs_are_compared_with_dense_jacobians(proj, randn):
    several = () if proj is None else (proj,)
    net, x = Energy(outputs=2), randn(5, 3)
    u, jtu = randn(5, *several, 2), randn(5, *several, 3)
    terms = AdjointTeacher("u", "jtu", scale=2.0).default_term
    assert (terms.order, terms.side) == (1, "cotangent")
    term = SobolevTerm(normalize="none")
    batch = {"x": x, "u": u, "jtu": jtu}
    found, slopes = evaluated(AdjointTeacher("u", "jtu", scale=2.0), net, batch, terms=term)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: net(row[None])[0]))(x)
    rows = torch.einsum("b...o,boi->b...i", u, jacobian) - 2.0 * jtu
    expected = rows.square().sum(-1).mean()
    assert_close(found, expected.detach())
    own = torch.autograd.grad(expected, list(net.parameters()), materialize_grads=True)
    assert_close(list(slopes), list(own))


TEACHERS = {
    "tangents": lambda **options: DirectionalTeacher("v", "jv", **options),
    "cotangents": lambda **options: AdjointTeacher("u", "jtu", **options),
    "mixed": lambda **options: MixedTeacher("m", **options),
}


@pytest.mark.parametrize("make", TEACHERS.values(), ids=TEACHERS)
@pytest.mark.parametrize("scale", [0.0, NAN, float("inf"), "1"])
def test_a_scale_that_leaves_nothing_of_the_labels_is_refused(make, scale):
    with pytest.raises(ValueError, match="scale must be a finite number other than zero, got"):
        make(scale=scale)


@pytest.mark.parametrize("per_step", [0, 1.5, "1"])
def test_a_number_of_pairs_is_one(per_step):
    with pytest.raises(ValueError, match="per_step must be at least 1 or None, got"):
        DirectionalTeacher("v", "jv", per_step=per_step)


@pytest.mark.parametrize("side", ["tangent", "cotangent"])
def test_infinity_is_no_direction_and_its_row_is_left_out_where_asked(randn, side):
    net = Energy(outputs=2)
    x, v, u = randn(4, 3), randn(4, 2, 3), randn(4, 2, 2)
    jacobian = dense_jacobian(net, x).detach()
    batch = {"x": x, "v": v, "u": u, "jv": randn(4, 2, 2), "jtu": randn(4, 2, 3)}
    errors = {"tangent": v @ jacobian.mT - batch["jv"], "cotangent": u @ jacobian - batch["jtu"]}
    batch["v"], batch["u"] = v.clone(), u.clone()
    batch["v"][1, 0, 2] = batch["u"][1, 0, 1] = -float("inf")
    teacher = {"tangent": DirectionalTeacher("v", "jv"), "cotangent": AdjointTeacher("u", "jtu")}
    term = SobolevTerm(side=side, normalize="none")
    with pytest.raises(ValueError, match="must be finite, got NaN or Inf in 1 of 4 rows"):
        evaluated(teacher[side], net, batch, terms=term)
    loss = SobolevLoss(teacher[side], term, non_finite="skip")
    with loss.observe(net):
        net(x)
    kept = errors[side][torch.tensor([0, 2, 3])]
    assert_close(loss(batch=batch).loss.detach(), kept.square().sum(-1).mean())


def test_cotangents_of_another_shape_are_spoken_of_as_such(randn):
    x = randn(5, 3)
    batch = {"x": x, "u": randn(5, 4), "jtu": randn(5, 3)}
    text = r"the teacher's own cotangents, \[5, 4\], got \[5, 2\]; left and cotangents of a teacher"
    with pytest.raises(ValueError, match=text):
        evaluated(AdjointTeacher("u", "jtu"), Energy(outputs=2), batch)
