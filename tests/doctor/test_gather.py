import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, NetworkTeacher
from lightning_sobolev._types import Query
from lightning_sobolev.doctor.gather import Gathering, samples_of

TEACHER = BatchTeacher(value="y", jacobian="j")


def batch(generator, size=6):
    draw = lambda *shape: torch.randn(size, *shape, generator=generator)  # noqa: E731
    return {"x": draw(2, 2), "y": draw(3), "j": draw(3, 2, 2)}


def taken(gathering, *batches, rows=None):
    for each in batches:
        query = Query(each["x"] if rows is None else each["x"][rows], batch=each, rows=rows)
        gathering.take(query, TEACHER.at(query))
    return gathering


def test_rows_of_batches_are_kept_flat_in_float64(generator):
    first, second = batch(generator), batch(generator)
    found = taken(Gathering(), first, second).samples()
    for name, kept in (("x", found.x), ("y", found.y), ("j", found.jacobian)):
        both = torch.cat([first[name], second[name]]).double()
        assert_close(kept, both.reshape(kept.shape), rtol=0, atol=0)
    assert found.jacobian.shape == (12, 3, 4)


def test_a_scalar_output_may_have_no_axis_of_its_own(generator):
    one = batch(generator)
    one = one | {"y": one["y"][:, 0], "j": one["j"][:, 0]}
    found = taken(Gathering(), one).samples()
    assert_close(found.y, one["y"][:, None].double(), rtol=0, atol=0)
    assert_close(found.jacobian, one["j"].reshape(6, 1, 4).double(), rtol=0, atol=0)


def test_a_point_that_comes_again_is_kept_once(generator):
    one = batch(generator)
    one["x"][4] = one["x"][1]
    found = taken(Gathering(), one, one).samples()
    assert_close(found.y, one["y"][[0, 1, 2, 3, 5]].double(), rtol=0, atol=0)


def test_the_rows_of_a_query_are_those_that_are_kept(generator):
    one, rows = batch(generator), torch.tensor([4, 1])
    assert_close(taken(Gathering(), one, rows=rows).samples().y, one["y"][rows].double())


def test_unknown_entries_stay_unknown(generator):
    one = batch(generator)
    one["j"][2, 1, 0, 1] = torch.nan
    assert taken(Gathering(), one).samples().jacobian.isnan().nonzero().tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("options", [{"most": 8}, {"batches": 1}, {"numbers": 8 * 12}])
def test_it_is_bounded(options, generator):
    gathering = taken(Gathering(**options), *(batch(generator) for _ in range(3)))
    assert gathering.is_full
    assert len(gathering) == (6 if "batches" in options else 8)


def test_points_of_another_size_end_it(generator):
    one, other = batch(generator), batch(generator)
    other |= {"x": other["x"][:, :1], "j": other["j"][..., :1, :]}
    gathering = taken(Gathering(), one, other, one)
    assert gathering.is_full
    assert gathering.is_vain
    assert len(gathering) == 0


def test_points_that_are_too_large_are_not_kept(generator):
    gathering = taken(Gathering(numbers=11), batch(generator))
    assert gathering.is_vain
    assert not taken(Gathering(numbers=12), batch(generator)).is_vain


def test_nothing_to_give_is_said():
    with pytest.raises(ValueError, match="samples: no batch was taken yet"):
        Gathering().samples()


def test_a_networks_jacobian_is_that_of_autograd(generator):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()).double()
    x = torch.randn(5, 3, generator=generator).double()
    found = samples_of(x, NetworkTeacher(network).at(Query(x)), torch.tensor([0, 3]))
    function = lambda point: network(point[None])[0]  # noqa: E731
    expected = torch.vmap(torch.func.jacrev(function))(x)[[0, 3]].detach()
    assert_close(found.jacobian, expected)
