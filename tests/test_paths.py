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


def test_take_rows_indexes_what_has_the_batch_size():
    tree = {"x": X, "scale": torch.ones(5), "zero": torch.tensor(1.0)}
    taken = _paths.take_rows(tree, torch.tensor([2, 0]), size=3)
    assert_close(taken["x"], X[[2, 0]])
    assert taken["scale"] is tree["scale"]
    assert taken["zero"] is tree["zero"]
