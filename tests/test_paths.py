from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import _paths

Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    inner: Any = None


X = torch.arange(6.0).reshape(3, 2)


def nested():
    return {"inputs": [Pair(X, 1), {"pos": X + 1}], "record": Record(X + 2, inner=(X + 3,))}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x", ("x",)),
        ("inputs.pos", ("inputs", "pos")),
        ("2", (2,)),
        (0, (0,)),
        (-1, (-1,)),
        ("-1.a.10", (-1, "a", 10)),
        ("a-1.--2", ("a-1", "--2")),
    ],
)
def test_parse(text, path):
    assert _paths.parse(text) == path


@pytest.mark.parametrize("text", ["", ".", "a..b", "a."])
def test_parse_refuses_an_empty_part(text):
    with pytest.raises(ValueError, match=r"a key path must look like 'a\.b\.0', got"):
        _paths.parse(text)


@pytest.mark.parametrize(
    ("path", "offset"),
    [(("inputs", 0, 0), 0), (("inputs", 1, "pos"), 1), (("record", "inner", 0), 3)],
)
def test_get_walks_dicts_sequences_and_dataclasses(path, offset):
    assert_close(_paths.get(nested(), path, "wrt"), X + offset)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("output",), r"wrt: no 'output' here; got a dict with keys \['inputs', 'record'\]"),
        (("inputs", 7), r"wrt: no 'inputs.7' here; got a list with keys \['0', '1'\]"),
        (("record", "z"), r"wrt: no 'record.z' here; got a Record with keys \['x', 'inner'\]"),
        (("inputs", 0, "x", 0), r"'inputs.0.x' here; got a Pair with keys"),
        (("record", "x", 0), r"no 'record.x.0' here; got a tensor \[3, 2\] of torch.float32"),
    ],
)
def test_get_names_the_missing_key_and_what_there_is(path, text):
    with pytest.raises(ValueError, match=text):
        _paths.get(nested(), path, "wrt")


@pytest.mark.parametrize(
    "path", [("inputs", 0, 1), ("inputs", 1, "pos"), ("record", "x"), ("record", "inner", 0), ()]
)
def test_put_changes_a_copy_alone(path):
    tree, value = nested(), X * 10
    before = [_paths.get(tree, ("inputs", 1, "pos"), ""), tree["inputs"], tree["record"]]
    changed = _paths.put(tree, path, value)
    assert _paths.get(changed, path, "") is value
    after = [_paths.get(tree, ("inputs", 1, "pos"), ""), tree["inputs"], tree["record"]]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert set(nested()) == set(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"a": X, "b": 1},
        OrderedDict(a=X, b=1),
        defaultdict(list, {"a": X, "b": 1}),
        MappingProxyType({"a": X, "b": 1}),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_put_keeps_the_other_keys_of_any_mapping(tree):
    changed = _paths.put(tree, ("a",), 5)
    assert dict(changed) == {"a": 5, "b": 1}
    assert tree["a"] is X
    if not isinstance(tree, MappingProxyType):
        assert type(changed) is type(tree)


def test_put_keeps_the_kind_of_a_sequence():
    assert _paths.put(Pair(1, 2), (1,), 5) == Pair(1, 5)
    assert _paths.put((1, 2), (0,), 5) == (5, 2)
    assert _paths.put([1, 2], (-1,), 5) == [1, 5]


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (X, ()),
        (X.long(), None),
        ({"ids": X.long(), "x": X}, ("x",)),
        ((X.long(), [None, "text", X]), (1, 2)),
        (Record(X.long(), inner={"deep": X}), ("inner", "deep")),
        ({}, None),
        (None, None),
    ],
)
def test_first_float_is_found_depth_first(tree, path):
    assert _paths.first_float(tree) == path


def test_map_tensors_copies_only_what_changes():
    tree = {"ids": X.long(), "deep": [X, None]}
    changed = _paths.map_tensors(tree, lambda t: t * 2 if t.is_floating_point() else t)
    assert_close(changed["deep"][0], X * 2)
    assert changed["ids"] is tree["ids"]
    assert_close(tree["deep"][0], X)


def test_take_rows_indexes_what_has_the_batch_size():
    tree = {"x": X, "scale": torch.ones(5), "zero": torch.tensor(1.0)}
    taken = _paths.take_rows(tree, torch.tensor([2, 0]), size=3)
    assert_close(taken["x"], X[[2, 0]])
    assert taken["scale"] is tree["scale"]
    assert taken["zero"] is tree["zero"]


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (X, "a tensor [3, 2] of torch.float32"),
        ({"a": 1}, "a dict with keys ['a']"),
        ((1, 2), "a tuple with keys ['0', '1']"),
        ("text", "a str"),
        (3, "a int"),
    ],
)
def test_describe(tree, text):
    assert _paths.describe(tree) == text
