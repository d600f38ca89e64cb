"""Batches and arguments of every common form: what they hold is found by name."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lightning_sobolev import BatchTeacher
from tests.kinds._by_hand import (
    Step,
    X,
    Y,
    assert_is,
    distance,
    exact,
    frobenius,
    jacobian,
    mlp,
    numbers,
    share,
    slope,
    target,
)

J = numbers(6, 2, 3, seed=2)


class Attributes(dict):
    """The usual recipe; asked for any name it has not, it raises KeyError."""

    __getattr__ = dict.__getitem__


class Fields(NamedTuple):
    x: Any
    y: Any
    jacobian: Any = None


@dataclass
class Data:
    x: Any
    y: Any
    jacobian: Any = None


class Loose:
    """As a batch of a graph package: plain attributes, moved by ``to``, length of its own."""

    def __init__(self, **parts):
        self._store = dict(parts)

    def __getattr__(self, name):
        try:
            return self.__dict__["_store"][name]
        except KeyError:
            raise AttributeError(f"no {name!r}") from None

    def __len__(self):
        return 2

    def to(self, *args, **kwargs):
        return self


KINDS = {"AttrDict": Attributes, "NamedTuple": Fields, "dataclass": Data, "object": Loose}


@pytest.fixture(params=KINDS)
def batch(request):
    return KINDS[request.param](x=X, y=Y, jacobian=J)


class Reads(Step):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch.x), batch.y)


@pytest.mark.parametrize("doctor", [False, True])
def test_a_batch_of_any_kind_is_passed_on(batch, doctor):
    net = mlp()
    found = share(Reads, [batch] * 2, exact(term={"weight": 0.0}))
    assert found.norm() == 0
    found = share(Reads, [batch], exact(doctor=doctor))
    assert_is(found, slope(frobenius(net, target, X), net))


def test_stored_derivatives_are_found_by_name(batch):
    net = mlp()
    found = share(Reads, [batch], exact(BatchTeacher("jacobian")))
    assert_is(found, slope(distance(jacobian(net, X), J), net))


class Whole(nn.Module):
    """Takes a batch and gives one: as models of graphs do."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.kind = mlp(), kind

    def forward(self, batch):
        return self.kind(x=batch.x, y=self.body(batch.x))


class Predicts(Step):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch).y, batch.y)


@pytest.mark.parametrize(("wrt", "doctor"), [("x", True), ("batch.x", False), ("0.x", False)])
@pytest.mark.parametrize("kind", KINDS)
def test_input_and_output_are_named_by_field_or_attribute(kind, wrt, doctor):
    make = KINDS[kind]
    callback = exact(wrt=wrt, output="y", doctor=doctor)
    found = share(lambda: Predicts(Whole(make)), [make(x=X, y=Y)], callback)
    net = Whole(make)
    assert_is(found, slope(frobenius(net.body, target, X), net))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_not_there_is_answered_by_those_that_are(kind):
    make = KINDS[kind]
    with pytest.raises(ValueError, match=r"(?s)wrt.*'?pos'?"):
        share(lambda: Predicts(Whole(make)), [make(x=X, y=Y)], exact(wrt="batch.pos"))


@pytest.mark.parametrize("path", ["forces", "x.0.forces"])
def test_a_stored_name_that_is_not_there_is_a_clear_error(batch, path):
    with pytest.raises(ValueError, match=r"(?s)BatchTeacher.*forces"):
        share(Reads, [batch], exact(BatchTeacher(path)))


class Labels(torch.Tensor):
    """A tensor with names of its columns, which its own methods need."""

    @staticmethod
    def named(tensor, labels):
        made = tensor.as_subclass(Labels)
        made._labels = labels
        return made

    @property
    def labels(self):
        return self._labels

    def extract(self, name):
        return self.as_subclass(torch.Tensor)[:, self._labels.index(name)]

    def clone(self, *args, **kwargs):
        return Labels.named(super().clone(*args, **kwargs), self._labels)

    def to(self, *args, **kwargs):
        return Labels.named(super().to(*args, **kwargs), self._labels)


class ByLabel(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        columns = [x.extract(name) for name in ("a", "b", "c")]
        return self.body(torch.stack(columns, 1))


@pytest.mark.filterwarnings("ignore:Sobolev doctor")  # it may say that it checked nothing
@pytest.mark.parametrize("doctor", [False, True])
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_a_tensor_with_attributes_keeps_them(side, doctor):
    batch, net = (Labels.named(X, ["a", "b", "c"]), Y), ByLabel()
    callback = exact(term={"side": side}, doctor=doctor)
    found = share(lambda: Step(ByLabel()), [batch], callback)
    assert_is(found, slope(frobenius(net.body, target, X), net))


class Marked(nn.Module):
    """Gives the subclass back, too."""

    def __init__(self):
        super().__init__()
        self.inner = ByLabel()

    def forward(self, x):
        return Labels.named(self.inner(x), ["u", "v"])


def test_a_tensor_with_attributes_may_be_the_output():
    class Extracts(Step):
        def training_step(self, batch, batch_idx):
            y = self.net(batch[0])
            return (y.extract("u") - batch[1][:, 0]).square().mean()

    batch, net = (Labels.named(X, ["a", "b", "c"]), Y), Marked()
    found = share(lambda: Extracts(Marked()), [batch], exact())
    assert_is(found, slope(frobenius(net.inner.body, target, X), net))
