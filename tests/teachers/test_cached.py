"""Stored answers are those of the teacher, and nothing else passes for them."""

import copy
import json
import pickle

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
from lightning_sobolev.spec import OUTPUT_MAPS
from tests._reference import dense_jacobian

TERMS = {
    "cotangent": SobolevTerm(num_projections=2),
    "tangent": SobolevTerm(side="tangent", projection="rademacher", num_projections=2),
}
SIZE = 23


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


def asked(teacher, data, rows):
    batch = {"index": torch.tensor(rows)}
    return teacher.at(data[rows], OUTPUT_MAPS["log_softmax"], batch)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("side", TERMS)
def test_answers_are_projections_of_the_dense_jacobian(side, dtype, tmp_path, data):
    term, rows = TERMS[side], [0, 22, 7, 10, 9]
    jet = asked(cached(tmp_path, data, settings(term, dtype=dtype)), data, rows)
    mapped = lambda x: torch.log_softmax(network()(x), -1)  # noqa: E731
    dense = dense_jacobian(mapped, data[rows])
    directions = jet.drawn(term, counter=5)
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
    jet = asked(stored, x, [5, 2])
    v = jet.drawn(TERMS["tangent"], 0)
    mapped = lambda points: torch.log_softmax(net(points), -1)  # noqa: E731
    step = 1e-3 * v
    difference = [(mapped(x[[5, 2]] + s) - mapped(x[[5, 2]] - s)) / 2e-3 for s in step]
    assert_close(jet.jvp(v), torch.stack(difference).detach(), rtol=5e-2, atol=5e-3)


def test_tiny_derivatives_survive_half_precision(tmp_path, data):
    teacher = AnalyticTeacher(lambda x: 1e-9 * x[:, :3])
    chosen = settings(dtype="float16", on="identity")
    stored = cached(tmp_path, data, chosen, teacher, label="tiny")
    jet = stored.at(data[:2], OUTPUT_MAPS["identity"], {"index": torch.arange(2)})
    u = jet.drawn(TERMS["cotangent"], 0)
    assert_close(jet.vjp(u)[..., :3], 1e-9 * u, rtol=1e-3, atol=0)


def test_a_sample_has_its_directions_in_every_batch(tmp_path, data):
    teacher, term = cached(tmp_path, data, settings()), TERMS["cotangent"]
    first = asked(teacher, data, [4, 20]).drawn(term, 7)
    other = asked(teacher, data, [20, 3, 4]).drawn(term, 7)
    assert_close(first[:, 0], other[:, 2], rtol=0, atol=0)
    assert_close(first[:, 1], other[:, 0], rtol=0, atol=0)


def test_steps_take_turns_with_all_the_draws(tmp_path, data):
    teacher, term = cached(tmp_path, data, settings()), SobolevTerm()
    seen = {tuple(asked(teacher, data, [0]).drawn(term, c)[0, 0].tolist()) for c in range(40)}
    assert len(seen) == 4


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
        teacher.at(data[:2], OUTPUT_MAPS["log_softmax"], batch)


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
    jet = asked(cached(tmp_path, data, settings()), data, [0, 1])
    with pytest.raises(ValueError, match=text):
        jet.drawn(term, 0)


def test_other_directions_and_maps_are_refused(tmp_path, data):
    teacher = cached(tmp_path, data, settings())
    jet = asked(teacher, data, [0, 1])
    u = jet.drawn(SobolevTerm(), 0)
    with pytest.raises(ValueError, match="knows its own cotangents alone"):
        jet.vjp(u.clone())
    with pytest.raises(ValueError, match="knows its own cotangents alone"):
        jet.jvp(torch.ones(1, 2, 5))
    with pytest.raises(ValueError, match="first derivatives only"):
        jet.hvp(u, torch.ones(1, 2, 5))
    with pytest.raises(ValueError, match="on must be 'log_softmax', as in the cache"):
        teacher.at(data[:2], OUTPUT_MAPS["identity"], {"index": torch.arange(2)})


def test_it_travels_to_other_processes_without_its_contents(tmp_path, data):
    teacher = cached(tmp_path, data, settings(num_draws=200))
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
