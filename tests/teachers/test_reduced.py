"""Laws of Jacobians between reduced bases, against the dense Jacobian."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import ReducedTeacher, SobolevTerm
from tests._laws import assert_unbiased
from tests._reference import dense_jacobian, parameter_gradients_by_differences
from tests.teachers._labels import Energy, Graphs, evaluated

NAN = float("nan")
SIDES = pytest.mark.parametrize("side", ["cotangent", "tangent"])
BASES = ["both", "left", "right", "rows"]


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def labels(randn):
    """Rows of 3 inputs and 4 outputs, seen along two vectors of each space."""

    def made(bases):
        x = randn(5, 3)
        left, right = randn(2, 4), randn(2, 3)
        batch = {"x": x, "u": randn(5, 2, 4), "v": randn(5, 2, 3)}
        given = {"left": left, "right": right}
        if bases == "rows":
            given = {"left": "u", "right": "v"}
            left, right = batch["u"], batch["v"]
        given = {name: basis for name, basis in given.items() if bases in ("both", "rows", name)}
        one = torch.eye(4, dtype=x.dtype), torch.eye(3, dtype=x.dtype)
        whole = {"left": left if "left" in given else one[0],
                 "right": right if "right" in given else one[1]}  # fmt: skip
        batch["r"] = reduced(Energy(outputs=4, seed=1), x, whole)
        return batch, given, whole

    return made


def reduced(net, x, whole):
    jacobian = dense_jacobian(net, x)
    left = whole["left"].expand(5, *whole["left"].shape[-2:])
    right = whole["right"].expand(5, *whole["right"].shape[-2:])
    return torch.einsum("bro,boi,bsi->brs", left, jacobian, right)


def exact(side, **options):
    return SobolevTerm(
        side=side, projection="basis", num_projections=None, normalize="none", **options
    )


@SIDES
@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_all_directions_together_are_the_whole_error(labels, bases, side, engine):
    batch, given, whole = labels(bases)
    net, teacher = Energy(outputs=4), ReducedTeacher("r", **given)

    def hand():
        error = reduced(net, batch["x"], whole) - batch["r"]
        return error.square().sum((1, 2)).mean()

    found, gradients = evaluated(teacher, net, batch, terms=exact(side), engine=engine)
    assert_close(found, hand().detach())
    expected = parameter_gradients_by_differences(hand, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)
    true, gradients = evaluated(
        teacher, Energy(outputs=4, seed=1), batch, terms=SobolevTerm(side=side), engine=engine
    )
    assert_close(true, torch.zeros_like(true))
    assert_close(gradients, tuple(map(torch.zeros_like, gradients)))


@SIDES
def test_metrics_weigh_both_spaces(labels, randn, side):
    batch, given, whole = labels("both")
    net, square, weights = Energy(outputs=4), randn(2, 2), torch.tensor([4.0, 0.25]).double()
    metric = square @ square.T + torch.eye(2, dtype=torch.float64)
    error = (reduced(net, batch["x"], whole) - batch["r"]).detach()
    for left, right in ((metric, weights), (weights, metric)):
        teacher = ReducedTeacher("r", **given, left_metric=left, right_metric=right)
        found, _ = evaluated(teacher, net, batch, terms=exact(side))
        left, right = (m.diag() if m.ndim == 1 else m for m in (left, right))
        expected = torch.einsum("bij,ik,bkl,lj->b", error, left, error, right).mean()
        assert_close(found, expected)


@SIDES
@pytest.mark.parametrize("law", ["sphere", "basis"])
def test_the_expectation_over_random_directions_is_all_of_them(labels, side, law):
    batch, given, _ = labels("both")
    net, teacher = Energy(outputs=4), ReducedTeacher("r", **given)
    term = SobolevTerm(side=side, projection=law, normalize="none")
    found = torch.stack(
        [evaluated(teacher, net, batch, terms=term, counter=step)[0] for step in range(60)]
    )
    assert found.std() > 0.0
    assert_unbiased(found, evaluated(teacher, net, batch, terms=exact(side))[0])
    again = evaluated(teacher, net, batch, terms=term, counter=7)[0]
    assert_close(again, found[7], rtol=0.0, atol=0.0)


def test_unknown_entries_and_parts_of_the_rows(labels):
    batch, given, whole = labels("both")
    batch["r"][0, 1, 0] = batch["r"][2] = NAN
    net, teacher = Energy(outputs=4), ReducedTeacher("r", **given)
    error = (reduced(net, batch["x"], whole) - batch["r"]).detach()
    known = ~error.isnan()
    # With all basis vectors of the left each element is known or not by itself.
    found, _ = evaluated(teacher, net, batch, terms=exact("cotangent"))
    expected = 2.0 * error.nan_to_num().square().sum() / known.any(-1).sum()
    assert_close(found, expected)
    true = Energy(outputs=4, seed=1)
    for side in ("cotangent", "tangent"):
        found, _ = evaluated(teacher, true, batch, terms=SobolevTerm(side=side, rows=0.6))
        assert_close(found, torch.zeros_like(found))


@SIDES
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_modes_of_graphs_of_different_size(randn, side, engine):
    """Slopes of each graph's energy along displacements of all its nodes."""
    index, pos, modes = torch.tensor([0, 1, 1, 0, 1, 2]), randn(6, 2), randn(6, 3, 2)

    def slopes(net):
        at = pos.clone().requires_grad_()
        (row,) = torch.autograd.grad(net(at, index).sum(), at, create_graph=True)
        each = torch.einsum("nd,nrd->nr", row, modes)
        return torch.zeros(3, 3, dtype=pos.dtype).index_add(0, index, each)

    batch = {"x": pos, "batch": index, "modes": modes, "r": slopes(Graphs(seed=1)).detach()}
    batch["r"][1, 2] = NAN
    where = {"engine": engine, "groups": "batch"}
    teacher, net = ReducedTeacher("r", right="modes", left=torch.ones(1)), Graphs()
    batch["r"] = batch["r"][:, None]
    true, _ = evaluated(teacher, Graphs(seed=1), batch, "x", "batch", **where,
                        terms=SobolevTerm(side=side, projection="basis"))  # fmt: skip
    assert_close(true, torch.zeros_like(true))
    if side == "cotangent":
        found, gradients = evaluated(teacher, net, batch, "x", "batch", terms=exact(side), **where)
        hand = lambda: (slopes(net) - batch["r"][:, 0]).nan_to_num().square().sum() / 3  # noqa: E731
        assert_close(found, hand().detach())
        expected = parameter_gradients_by_differences(hand, net)
        assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)


def test_what_does_not_fit_is_refused(labels, randn):
    batch, given, _ = labels("both")
    net = Energy(outputs=4)
    with pytest.raises(ValueError, match="left must be given, or right"):
        ReducedTeacher("r")
    with pytest.raises(ValueError, match="right_metric must be weights >= 0 or a positive def"):
        ReducedTeacher("r", **given, right_metric=-torch.eye(2))
    with pytest.raises(ValueError, match=r"reduced must have shape \[batch, r_out, r_in\]"):
        evaluated(ReducedTeacher("r", left=randn(3, 4), right=given["right"]), net, batch)
    with pytest.raises(ValueError, match="left_metric must have 2 weights"):
        evaluated(ReducedTeacher("r", **given, left_metric=torch.ones(3)), net, batch)
    with pytest.raises(ValueError, match="of order 1 with a projection of"):
        evaluated(ReducedTeacher("r", **given), net, batch, terms=SobolevTerm(order=2))
    with pytest.raises(ValueError, match="must be None where rows are not whole, got 50"):
        evaluated(ReducedTeacher("r", **given), net, batch, terms=SobolevTerm(band=50.0))
    with pytest.raises(ValueError, match="the output must have the shape of the teacher's own"):
        evaluated(ReducedTeacher("r", left=randn(2, 3), right=given["right"]), net, batch)
    with pytest.raises(ValueError, match="left must have vectors of the output's shape"):
        evaluated(ReducedTeacher("r", left=randn(2, 3), right=given["right"]), net, batch,
                  terms=SobolevTerm(side="tangent"))  # fmt: skip


@SIDES
def test_rows_with_fewer_vectors_are_compared_along_those(labels, side):
    batch, given, whole = labels("rows")
    net, teacher = Energy(outputs=4), ReducedTeacher("r", **given)
    error = (reduced(net, batch["x"], whole) - batch["r"]).detach()
    batch |= {"u": batch["u"].clone(), "v": batch["v"].clone()}
    batch["u"][0, 1, 3] = batch["v"][1, 0] = batch["v"][3, 1] = NAN
    batch["u"][4] = NAN  # nothing is known of this row
    error[0, 1] = error[1, :, 0] = error[3, :, 1] = 0.0
    expected = error[:4].square().sum((1, 2)).mean()
    assert_close(evaluated(teacher, net, batch, terms=exact(side))[0], expected)
    term = SobolevTerm(side=side, normalize="none")
    found = [evaluated(teacher, net, batch, terms=term, counter=step)[0] for step in range(60)]
    assert_unbiased(torch.stack(found), expected)


@SIDES
def test_an_infinite_vector_is_refused_as_a_label_is(labels, side):
    batch, given, _ = labels("rows")
    for name in ("u", "v"):
        wrong = batch | {name: batch[name].clone()}
        wrong[name][2, 0, 1] = float("inf")
        with pytest.raises(ValueError, match="must be finite, got NaN or Inf in 1 of 5 rows"):
            evaluated(ReducedTeacher("r", **given), Energy(outputs=4), wrong, terms=exact(side))


def test_a_mode_that_is_not_known_of_one_node_is_not_known_of_its_graph(randn):
    index, pos, modes = torch.tensor([0, 1, 1, 0, 1]), randn(5, 2), randn(5, 3, 2)
    net, found = Graphs(), pos.clone().requires_grad_()
    (row,) = torch.autograd.grad(net(found, index).sum(), found)
    slopes = torch.zeros(2, 3, dtype=pos.dtype)
    slopes.index_add_(0, index, torch.einsum("nd,nrd->nr", row, modes))
    batch = {"x": pos, "batch": index, "modes": modes.clone(), "r": randn(2, 3)}
    error = slopes - batch["r"]
    batch["modes"][2, 1, 0] = NAN
    error[1, 1] = 0.0
    term = exact("cotangent")
    teacher = ReducedTeacher("r", right="modes")
    loss, _ = evaluated(teacher, net, batch, "x", "batch", terms=term, groups="batch")
    assert_close(loss, error.square().sum(1).mean())


@SIDES
def test_numbers_of_any_kind_and_lists_are_bases_and_metrics(labels, side):
    batch, given, _ = labels("both")
    left, right = torch.tensor([[1, 0, 2, 0], [0, 3, 0, 1]]), torch.tensor([[1, 2, 0], [0, 1, 1]])
    metric = torch.tensor([[2, 1], [1, 2]])
    net = Energy(outputs=4)

    def found(*bases, metric):
        teacher = ReducedTeacher("r", *bases, left_metric=metric, right_metric=metric)
        return evaluated(teacher, net, batch, terms=exact(side))[0]

    error = reduced(net, batch["x"], {"left": left.double(), "right": right.double()})
    error = (error - batch["r"]).detach()
    own = metric.double()
    expected = torch.einsum("bij,ik,bkl,lj->b", error, own, error, own).mean()
    for kind in (torch.int64, torch.float16, torch.float32):
        given = [left.to(kind), right.to(kind)]
        assert_close(found(*given, metric=metric.to(kind)), expected, rtol=1e-6, atol=0.0)
    lists = [left.tolist(), right.tolist()]
    assert_close(found(*lists, metric=metric.tolist()), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("number", [NAN, float("inf")])
@pytest.mark.parametrize("name", ["left", "right"])
def test_a_basis_of_all_rows_must_be_finite(name, number):
    with pytest.raises(ValueError, match=rf"{name} must be finite vectors \[r, \*space\], got"):
        ReducedTeacher("r", **{name: torch.tensor([[1.0, number]])})
