"""Stored answers are those of the teacher, and nothing else passes for them."""

import copy
import json
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    CachedTeacher,
    CacheSettings,
    NetworkTeacher,
    SobolevTerm,
    cache_answers,
)
from lightning_sobolev._groups import Groups
from lightning_sobolev._types import Query
from lightning_sobolev.functional import counter_draw
from lightning_sobolev.spec import OUTPUT_MAPS
from tests._reference import dense_jacobian

TERMS = {
    "cotangent": SobolevTerm(num_projections=2),
    "tangent": SobolevTerm(side="tangent", projection="rademacher", num_projections=2),
}
SIZE = 23
EXPECTED_DRAWS = [2, 2, 1, 3, 3, 2, 3, 3]  # of four, at the first steps


def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


@pytest.fixture
def data(generator):
    return torch.randn(SIZE, 5, generator=generator)


def settings(term=TERMS["cotangent"], **changes):
    own = {"side": term.side, "projection": term.projection, "num_draws": 4, "shard_size": 10}
    return CacheSettings(**{**own, "on": "log_softmax", **changes})


def cached(tmp_path, data, chosen, teacher=None, **options):
    teacher = NetworkTeacher(network()) if teacher is None else teacher
    folder = tmp_path / "cache"
    cache_answers(teacher, lambda i: data[i], SIZE, folder, chosen, batch_size=4, **options)
    return CachedTeacher(folder)


def query(data, rows, *, on="log_softmax", **more):
    return Query(data[rows], OUTPUT_MAPS[on], {"index": torch.tensor(rows)}, **more)


def asked(teacher, data, rows):
    return teacher.at(query(data, rows))


def given(teacher, asked_about, term):
    directions = teacher.directions(asked_about, term)
    own = directions._asdict()
    found = own.pop(f"{term.side}s")
    assert all(other is None for other in own.values())
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("side", TERMS)
def test_answers_are_projections_of_the_dense_jacobian(side, dtype, tmp_path, data):
    term, rows = TERMS[side], [0, 22, 7, 10, 9]
    teacher, about = cached(tmp_path, data, settings(term, dtype=dtype)), query(data, rows, step=5)
    mapped = lambda x: torch.log_softmax(network()(x), -1)  # noqa: E731
    dense = dense_jacobian(mapped, data[rows])
    directions, jet = given(teacher, about, term), teacher.at(about)
    assert_close(jet.value, mapped(data[rows]))
    tolerance = {} if dtype == "float32" else {"rtol": 2e-3, "atol": 2e-3}
    if side == "cotangent":
        expected = torch.einsum("pbo,boi->pbi", directions, dense)
        assert_close(jet.vjp(directions), expected, **tolerance)
    else:
        expected = torch.einsum("pbi,boi->pbo", directions, dense)
        assert_close(jet.jvp(directions), expected, **tolerance)


def test_columns_of_a_teacher_with_attention(tmp_path, generator):
    with torch.random.fork_rng():
        torch.manual_seed(3)  # a kink or a small variance of a norm within a step would show
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation="gelu", batch_first=True)
        net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))
    x = torch.randn(SIZE, 3, 4, generator=generator)
    stored = cached(tmp_path, x, settings(TERMS["tangent"]), NetworkTeacher(net))
    about = query(x, [5, 2])
    v, jet = given(stored, about, TERMS["tangent"]), stored.at(about)
    mapped = lambda points: torch.log_softmax(net(points), -1)  # noqa: E731
    step = 1e-3 * v
    difference = [(mapped(x[[5, 2]] + s) - mapped(x[[5, 2]] - s)) / 2e-3 for s in step]
    assert_close(jet.jvp(v), torch.stack(difference).detach(), rtol=5e-2, atol=5e-3)


def test_tiny_derivatives_survive_half_precision(tmp_path, data):
    teacher = AnalyticTeacher(lambda x: 1e-9 * x[:, :3])
    chosen = settings(dtype="float16", on="identity")
    stored = cached(tmp_path, data, chosen, teacher, label="tiny")
    about = query(data, [0, 1], on="identity")
    u = given(stored, about, TERMS["cotangent"])
    assert_close(stored.at(about).vjp(u)[..., :3], 1e-9 * u, rtol=1e-3, atol=0)


def test_a_sample_has_its_directions_in_every_batch(tmp_path, data):
    teacher, term = cached(tmp_path, data, settings()), TERMS["cotangent"]
    first = given(teacher, query(data, [4, 20], step=7), term)
    other = given(teacher, query(data, [20, 3, 4], step=7), term)
    assert_close(first[:, 0], other[:, 2], rtol=0, atol=0)
    assert_close(first[:, 1], other[:, 0], rtol=0, atol=0)


def test_steps_take_turns_with_all_the_draws(tmp_path, data):
    teacher, term = cached(tmp_path, data, settings()), SobolevTerm()
    about = query(data, [0])  # the same batch in every step
    drawn = [given(teacher, replace(about, step=step), term)[0, 0] for step in range(40)]
    assert len({tuple(one.tolist()) for one in drawn}) == 4
    # which one of them is a hash of the step: the same in every version
    every = [
        counter_draw("sphere", torch.tensor([0]), (3,), seed=0, draw=draw, dtype=torch.float32)[0]
        for draw in range(4)
    ]
    taken = [[torch.equal(one, each) for each in every].index(True) for one in drawn[:8]]
    assert taken == EXPECTED_DRAWS


def test_terms_and_their_rows_are_asked_in_any_order(tmp_path, data):
    teacher, rows = cached(tmp_path, data, settings()), torch.tensor([3, 0])
    numbers = torch.tensor([7, 2, 9, 20])
    batch, on = {"index": numbers}, OUTPUT_MAPS["log_softmax"]
    whole = Query(data[numbers], on, batch, step=3)
    part = Query(data[numbers[rows]], on, batch, rows=rows, step=3)
    one, two = SobolevTerm(), SobolevTerm(num_projections=2)
    u_whole, u_two, u_part = (
        given(teacher, *asking) for asking in ((whole, one), (whole, two), (part, two))
    )
    assert torch.equal(u_two[:1], u_whole)
    assert not torch.equal(*u_two)
    again = Query(data[numbers[rows]], on, batch, rows=rows.clone(), step=3)
    dense = dense_jacobian(lambda x: torch.log_softmax(network()(x), -1), data[numbers])
    expected = lambda u, J: torch.einsum("pbo,boi->pbi", u, J)  # noqa: E731
    assert_close(teacher.at(again).vjp(u_part), expected(u_part, dense[rows]))
    assert_close(teacher.at(whole).vjp(u_whole), expected(u_whole, dense))
    assert_close(teacher.at(whole).vjp(u_two), expected(u_two, dense))
    assert_close(teacher.at(part).value, teacher.at(whole).value[rows])


def test_directions_of_earlier_steps_are_let_go(tmp_path, data):
    teacher, about = cached(tmp_path, data, settings()), query(data, [0])
    kept = weakref.ref(given(teacher, about, SobolevTerm()))
    assert kept() is not None
    given(teacher, replace(about, step=1), SobolevTerm())
    assert kept() is None


def test_a_term_of_the_values_needs_no_directions(tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    assert teacher.directions(query(data, [0]), SobolevTerm(order=0)) is None


def test_what_was_interrupted_goes_on_and_ends_in_the_same_bytes(tmp_path, data):
    whole = cached(tmp_path, data, settings())
    asked_for = []

    def broken(index):
        asked_for.extend(index.tolist())
        if 12 in index:
            raise KeyboardInterrupt
        return data[index]

    folder, teacher = tmp_path / "other", NetworkTeacher(network())
    with pytest.raises(KeyboardInterrupt):
        cache_answers(teacher, broken, SIZE, folder, settings(), batch_size=4)
    with pytest.raises(ValueError, match="must be complete, got 2 of 3 shards missing"):
        CachedTeacher(folder)
    asked_for.clear()
    whole_again = lambda i: asked_for.extend(i.tolist()) or data[i]  # noqa: E731
    cache_answers(teacher, whole_again, SIZE, folder, settings(), batch_size=4)
    assert set(asked_for) == {0, 1, *range(10, SIZE)}
    for path in sorted(whole.folder.glob("*.npy")):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_processes_share_the_work(tmp_path, data):
    folder, teacher = tmp_path / "shared", NetworkTeacher(network())
    for rank in (1, 0):
        cache_answers(teacher, lambda i: data[i], SIZE, folder, settings(), rank=rank, world_size=2)
    expected = asked(cached(tmp_path, data, settings()), data, [0, 11, 22])
    found = asked(CachedTeacher(folder), data, [0, 11, 22])
    assert_close(found.value, expected.value, rtol=0, atol=1e-6)


def test_changed_bytes_are_found(tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    path = teacher.folder / "shard-00001.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001.npy must have the checksum .* was changed"):
        CachedTeacher(teacher.folder)


def other_network():
    net = copy.deepcopy(network())
    net[0].bias.data[0] += 1e-3
    return NetworkTeacher(net)


@pytest.mark.parametrize(
    ("teacher", "changes", "name"),
    [
        (other_network(), {}, "teacher"),
        (None, {"seed": 1}, "seed"),
        (None, {"num_draws": 5}, "num_draws"),
        (None, {"on": "identity"}, "on"),
    ],
)
def test_another_cache_is_not_overwritten(teacher, changes, name, tmp_path, data):
    cached(tmp_path, data, settings())
    with pytest.raises(ValueError, match=f"the same cache, got .* with another {name}"):
        cached(tmp_path, data, settings(**changes), teacher)


def test_augmented_inputs_are_refused(tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    with pytest.raises(ValueError, match="inputs of the student must be those of the cache"):
        asked(teacher, data + 0.1, [1, 2])
    with pytest.raises(ValueError, match="inputs of the student must be those of the cache"):
        asked(teacher, data.flip(0), [1, 2])


def test_inputs_that_were_rounded_elsewhere_are_accepted(tmp_path, data):
    asked(cached(tmp_path, data, settings()), data * (1 + 1e-6), [1, 2])


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"index": torch.tensor([0, 23])}, r"index must be in \[0, 23\)"),
        ({"index": torch.tensor([0, -1])}, r"index must be in \[0, 23\)"),
        ({"index": torch.tensor([0.0, 1.0])}, "must hold 2 integers"),
        ({"index": torch.tensor([0])}, "must hold 2 integers"),
    ],
)
def test_a_batch_must_say_which_samples_it_holds(batch, text, tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    with pytest.raises(ValueError, match=text):
        teacher.at(Query(data[:2], OUTPUT_MAPS["log_softmax"], batch))


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (TERMS["tangent"], "side of term 'order_1' must be 'cotangent' of order 1"),
        (SobolevTerm(projection="gaussian"), "projection of term 'order_1' must be 'sphere'"),
        (SobolevTerm(order=2), "must be 'cotangent' of order 1"),
        (SobolevTerm(num_projections=5), "at most the 4 draws of the cache, got 5"),
    ],
)
def test_terms_that_were_not_stored_are_refused(term, text, tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    with pytest.raises(ValueError, match=text):
        teacher.directions(query(data, [0, 1]), term)


def test_other_directions_and_maps_are_refused(tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    about = query(data, [0, 1])
    jet = teacher.at(about)
    with pytest.raises(ValueError, match="knows its own cotangents alone"):
        jet.vjp(torch.ones(1, 2, 3))  # before any was given
    u = given(teacher, about, SobolevTerm())
    for other in (u.repeat(2, 1, 1), u[:, :1], u[..., :2]):
        with pytest.raises(ValueError, match="knows its own cotangents alone"):
            jet.vjp(other)
    with pytest.raises(ValueError, match="knows its own cotangents alone"):
        jet.jvp(torch.ones(1, 2, 5))
    with pytest.raises(ValueError, match="first derivatives only"):
        jet.hvp(u, torch.ones(1, 2, 5))
    with pytest.raises(ValueError, match="on must be 'log_softmax', as in the cache"):
        teacher.at(query(data, [0, 1], on="identity"))
    with pytest.raises(ValueError, match="on must be 'log_softmax', as in the cache"):
        teacher.directions(query(data, [0, 1], on="identity"), SobolevTerm())


def test_it_travels_to_other_processes_without_its_contents(tmp_path, data):
    teacher = cached(tmp_path, data, settings(num_draws=200))
    given(teacher, query(data, list(range(SIZE))), SobolevTerm(num_projections=200))
    packed = pickle.dumps(teacher)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    assert_close(asked(again, data, [3]).value, asked(teacher, data, [3]).value)


def test_a_teacher_that_cannot_be_told_apart_needs_a_label(tmp_path, data):
    with pytest.raises(ValueError, match="label must identify a teacher that is no network"):
        cached(tmp_path, data, settings(on="identity"), AnalyticTeacher(torch.sin))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"side": "both"}, "side must be one of"),
        ({"num_draws": 0}, "num_draws must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        CacheSettings(**changes)


def test_no_folder_of_other_things_is_opened(tmp_path):
    with pytest.raises(ValueError, match="folder must hold a cache"):
        CachedTeacher(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="must have format 1, got 99"):
        CachedTeacher(tmp_path)


def test_graphs_have_no_directions_in_a_cache(tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    asked_about = query(data, list(range(6)), groups=Groups(torch.tensor([0, 0, 1, 1, 1, 1]), 2))
    for ask in (teacher.at, lambda q: teacher.directions(q, TERMS["cotangent"])):
        with pytest.raises(ValueError, match="groups must be None with a CachedTeacher"):
            ask(asked_about)
