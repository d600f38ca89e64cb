from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sobolev import _paths

Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    inner: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    x: torch.Tensor
    inner: Any = None


@dataclass
class Derived:
    x: torch.Tensor

    def __post_init__(self):
        self.inner = self.x + 1  # no field


class Graph:
    """Any object that holds tensors."""

    def __init__(self, x, inner=None):
        self.x, self.inner, self._hidden = x, inner, x

    @property
    def doubled(self):
        return 2 * self.x


class Listing:
    """Keeps its tensors elsewhere, as the graphs of torch_geometric do."""

    def __init__(self, **store):
        self.__dict__["_store"] = store

    def keys(self):
        return list(set(self._store))

    def __getattr__(self, name):
        if name not in self.__dict__.get("_store", {}):
            raise AttributeError(name)
        return self._store[name]

    def __setattr__(self, name, value):
        self._store[name] = value

    def __copy__(self):
        return Listing(**self._store)

    def __getitem__(self, key):
        raise AssertionError("may make what it does not find")


class AttrDict(dict):
    __setattr__ = dict.__setitem__

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Indexed(dict):
    """Takes a number for a row, as a TensorDict does."""

    def __getitem__(self, key):
        if isinstance(key, int):
            return Indexed({name: tensor[key] for name, tensor in self.items()})
        return super().__getitem__(key)

    def __contains__(self, key):
        if isinstance(key, int):
            raise RuntimeError("no key")
        return super().__contains__(key)


X = torch.arange(6.0).reshape(3, 2)


def nested():
    return {"inputs": [Pair(X, 1), {"pos": X + 1}], "record": Record(X + 2, inner=(X + 3,))}


@pytest.mark.parametrize(
    "path",
    [
        ("inputs", 0, 1),
        ("inputs", 0, "y"),
        ("inputs", 1, "pos"),
        ("record", "x"),
        ("record", "inner", 0),
        (),
    ],
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
        AttrDict(a=X, b=1),
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
    assert _paths.put(Pair(1, 2), (-2,), 5) == Pair(5, 2)
    assert _paths.put(Pair(1, 2), ("y",), 5) == Pair(1, 5)
    assert isinstance(_paths.put(Pair(1, 2), ("y",), 5), Pair)
    assert _paths.put((1, 2), (0,), 5) == (5, 2)
    assert _paths.put([1, 2], (-1,), 5) == [1, 5]


OBJECTS = [Record(X, X + 1), Slotted(X, X + 1), Derived(X), Graph(X, X + 1)]
OBJECTS += [Listing(x=X, inner=X + 1), Pair(X, X + 1)]


@pytest.mark.parametrize("tree", OBJECTS, ids=lambda tree: type(tree).__name__)
def test_put_replaces_one_attribute_of_a_copy(tree):
    other = "y" if isinstance(tree, Pair) else "inner"
    kept, value = getattr(tree, other), X * 10
    changed = _paths.put(tree, ("x",), value)
    assert type(changed) is type(tree)
    assert changed.x is value
    assert tree.x is X
    assert getattr(changed, other) is kept  # not made anew
    deep = _paths.put({"batch": [tree]}, ("batch", 0, other), value)
    assert getattr(deep["batch"][0], other) is value
    assert getattr(tree, other) is kept


def test_put_asks_an_object_to_set_its_attribute():
    assert vars(_paths.put(Listing(x=X), ("x",), 5)) == {"_store": {"x": 5}}


def test_names_are_keys_of_mappings_and_attributes_of_all_else():
    assert _paths.get(AttrDict(values=X), ("values",), "") is X  # not the method
    assert _paths.get(Pair(X, 1), ("x",), "") is X
    assert _paths.get(Pair(X, 1), (0,), "") is X
    assert _paths.get({"graph": Graph(X)}, ("graph", "x"), "") is X
    assert torch.equal(_paths.get(Graph(X), ("doubled",), ""), 2 * X)
    assert _paths.get({0: X}, (0,), "") is X


@pytest.mark.parametrize(
    ("tree", "path", "text"),
    [
        (AttrDict(a=X), "b", r"wrt: no 'b' here; got a AttrDict with keys \['a'\]"),
        ({"a": X}, "values", r"wrt: no 'values' here; got a dict with keys \['a'\]"),
        (Graph(X), "pos", r"wrt: no 'pos' here; got a Graph with keys \['x', 'inner'\]"),
        (Graph(X), "0", r"wrt: no '0' here; got a Graph"),
        (Listing(a=X), "0", r"wrt: no '0' here; got a Listing with keys \['a'\]"),
        (Record(X), "pos", r"wrt: no 'pos' here; got a Record with keys \['x', 'inner'\]"),
        (Pair(X, 1), "pos", r"wrt: no 'pos' here; got a Pair with keys \['0', '1'\]"),
        (Pair(X, 1), "2", r"wrt: no '2' here; got a Pair"),
        ([X], "append", r"wrt: no 'append' here; got a list with keys \['0'\]"),
        ([X], "0.0", r"wrt: no '0.0' here; got a tensor \[3, 2\]"),
        ([X], "0.shape", r"wrt: no '0.shape' here; got a tensor \[3, 2\]"),
        ({"a": "text"}, "a.0", r"wrt: no 'a.0' here; got a str"),
        ({"a": b"text"}, "a.0", r"wrt: no 'a.0' here; got a bytes"),
        (Indexed(a=X), "0", r"wrt: no '0' here; got a Indexed with keys \['a'\]"),
        (defaultdict(list, {"a": X}), "b", r"wrt: no 'b' here; got a defaultdict"),
    ],
)
def test_what_is_missing_is_named(tree, path, text):
    with pytest.raises(ValueError, match=text):
        _paths.get(tree, _paths.parse(path), "wrt")


def test_tensors_are_listed_depth_first():
    owner = Graph(X, [X + 1])
    owner.me, owner.net, owner.text = owner, nn.Linear(2, 2), "text"
    owner.net.cache = X
    tree = {"a": (1, owner, Pair(X + 2, "b")), "b": X + 3, "c": Listing(x=X + 4)}
    tree["sizes"] = X.shape, range(10**12)
    found = _paths.tensors(tree)
    expected = [("a", 1, "x"), ("a", 1, "inner", 0), ("a", 2, 0), ("b",), ("c", "x")]
    assert [path for path, _ in found] == expected
    for number, (path, tensor) in enumerate(found):
        assert torch.equal(tensor, X + number)
        assert _paths.get(tree, path, "") is tensor
    assert _paths.tensors(X) == [((), X)]
    assert not _paths.tensors("text")


def test_the_first_float_has_axes_and_the_asked_rows():
    tree = {"n": torch.arange(3), "t": torch.tensor(0.5), "w": torch.ones(5, 3), "x": X}
    assert _paths.first_float(tree) == ("w",)
    assert _paths.first_float(tree, rows=3) == ("x",)
    assert _paths.first_float(tree, rows=4) is None
    assert _paths.first_float(torch.tensor(0.5)) is None
    assert _paths.first_float(torch.tensor(0.5), rows=3) is None
    assert _paths.first_float(X) == ()
    assert _paths.first_float(torch.ones(0, 2), rows=0) == ()


def test_tensors_are_mapped_in_copies():
    tree = {"a": Graph(X, (X.long(),)), "b": [Pair(X + 1, 2)], "c": [X.long()]}
    halved = _paths.map_tensors(tree, lambda t: t / 2 if t.is_floating_point() else t)
    assert torch.equal(halved["a"].x, X / 2)
    assert torch.equal(halved["b"][0].x, (X + 1) / 2)
    assert halved["a"].inner is tree["a"].inner
    assert halved["c"] is tree["c"]
    assert tree["a"].x is X


NAMES = [f"{letter}{number}" for letter in "zyxw" for number in range(5)]


def test_names_without_an_order_are_sorted():
    listing = Listing(**dict.fromkeys(NAMES, X))
    assert [path for path, _ in _paths.tensors(listing)] == [(name,) for name in sorted(NAMES)]


def test_what_an_object_without_an_order_holds_beside_is_as_good():
    listing = Listing(b=X, a=X + 1, n=X.long(), deep={"c": torch.ones(2)})
    tree = {"x": X, "graph": [listing]}
    everywhere = [("a",), ("b",), ("deep", "c")]
    assert _paths.rivals(tree, ("graph", 0, "a")) == everywhere
    assert _paths.rivals(tree, ("graph", 0, "deep", "c")) == everywhere
    assert _paths.rivals(tree, ("graph", 0, "a"), rows=3) == everywhere[:2]
    assert not _paths.rivals(tree, ("graph", 0, "deep", "c"), rows=2)
    assert not _paths.rivals(tree, ("x",))
    assert not _paths.rivals(Graph(X, X + 1), ("x",))  # attributes have an order


def test_write_changes_what_it_is_given():
    for tree in ({"x": X}, AttrDict(x=X), Graph(X), Listing(x=X), [X]):
        key = 0 if isinstance(tree, list) else "x"
        _paths.write(tree, key, 5)
        assert _paths.get(tree, (key,), "") == 5
