"""With rows < 1 what has rows is cut, and what merely has the batch's length is not."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from tests.kinds._measure import Step, Way, assert_taught, batch, numbers, seeded

WAYS = {
    "whole": Way(),
    "half of the rows": Way(rows=0.5),
    "a single row": Way(rows=0.15),
    "tangents": Way("jvp", rows=0.5),
    "order 2": Way("order_2", rows=0.5),
    "func": Way(rows=0.5, options={"engine": "func"}),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
few = pytest.mark.parametrize("way", [WAYS["half of the rows"], WAYS["func"]], ids=["tape", "func"])


class Net(nn.Module):
    def __init__(self, dim=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, 4), nn.Tanh(), nn.Linear(4, 2))


class Bank(Net):
    """Looks its input up in a memory of as many entries as the batch has rows."""

    def forward(self, x, bank):
        return self.body((x @ bank.T).softmax(-1) @ bank)


class Scales(Net):
    """One factor for each feature, of which there are as many as rows."""

    def __init__(self):
        super().__init__(dim=6)

    def forward(self, x, scale):
        return self.body(x * scale)


class ClassWeights(Net):
    """One weight for each of six classes, used behind the trunk."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 6)

    def forward(self, x, weights):
        return (self.head(self.body(x).tanh()) * weights)[:, :2]


class Attends(Net):
    """Six time steps that look at each other as a mask of [time, time] allows."""

    def __init__(self):
        super().__init__(dim=1)

    def forward(self, x, mask):
        x = x.unflatten(1, (6, 1))
        scores = (x @ x.transpose(1, 2)).masked_fill(mask < 0.0, -1e9)
        return self.body(scores.softmax(-1) @ x).sum(1)


BESIDE = {
    "bank": (Bank, 3, numbers(6, 3, seed=5)),
    "scale": (Scales, 6, numbers(6, seed=5)),
    "weights": (ClassWeights, 3, numbers(6, seed=5)),
    "mask": (Attends, 6, torch.where(torch.ones(6, 6).tril() > 0, 1.0, -1.0).double()),
}


def beside(net, value):
    class Beside(Step):
        def __init__(self):
            super().__init__(seeded(net))

        def call(self, x):
            return self.net(x, value.clone().to(x))

    return Beside


@ways
@pytest.mark.parametrize("name", BESIDE)
def test_what_has_the_length_of_the_batch_by_chance_is_left_whole(name, way):
    assert_left_whole(name, way, declared=False)


@few
@pytest.mark.parametrize("name", BESIDE)
def test_what_is_declared_without_rows_is_left_whole(name, way):
    assert_left_whole(name, way, declared=True)


def assert_left_whole(name, way, declared):
    net, dim, value = BESIDE[name]
    options = {"row_axes": {name: None}} if declared else {}
    assert_taught(
        beside(net, value), way, lambda module, x: module.net(x, value),
        data=lambda: batch(dim=dim), **options,
    )  # fmt: skip


@dataclass
class Record:
    cond: torch.Tensor
    table: torch.Tensor


class Fields(NamedTuple):
    cond: torch.Tensor
    table: torch.Tensor


class Conditioned(Net):
    """Has a condition for each row, and a table that all rows share, in whatever holds both."""

    def forward(self, x, extra=None, *, cond=None, table=None):
        if isinstance(extra, dict):
            cond, table = extra["cond"], extra["table"]
        elif isinstance(extra, list | tuple) and not isinstance(extra, Fields):
            cond, table = extra
        elif extra is not None:
            cond, table = extra.cond, extra.table
        return self.body((x * cond) @ table.T[:, :3] @ table[:3])


TABLES = {size: numbers(size, 3, seed=6) for size in (5, 6)}


class InKeywords(Step):
    def __init__(self, table):
        super().__init__(seeded(Conditioned))
        self.table = table

    def given(self, cond, table):
        return {"cond": cond, "table": table}

    def call(self, x, cond):
        return self.net(x, **self.given(cond, self.table.clone().to(x)))


class InDict(InKeywords):
    def given(self, cond, table):
        return {"extra": {"cond": cond, "table": table}}


class InList(InKeywords):
    def given(self, cond, table):
        return {"extra": [cond, table]}


class InTuple(InKeywords):
    def given(self, cond, table):
        return {"extra": (cond, table)}


class InRecord(InKeywords):
    def given(self, cond, table):
        return {"extra": Record(cond, table)}


class InFields(InKeywords):
    def given(self, cond, table):
        return {"extra": Fields(cond, table)}


def reference(module, x, cond):
    return module.net(x, cond=cond, table=module.table)


AXES = {
    InKeywords: {"cond": 0, "table": None},
    InDict: {"extra.cond": 0},
    InList: {"extra.0": 0, "extra.1": None},
    InTuple: {"extra.0": 0},
    InRecord: {"extra.cond": 0, "extra.table": None},
    InFields: {"extra.0": 0},
}


@few
@pytest.mark.parametrize(("size", "declared"), [(5, False), (6, False), (6, True)])
@pytest.mark.parametrize("step", AXES)
def test_rows_are_cut_wherever_they_are_held(step, size, declared, way):
    def make():
        return step(TABLES[size])

    options = {"row_axes": AXES[step]} if declared else {}
    assert_taught(make, way, reference, data=lambda: batch(numbers(6, 3, seed=5)), **options)


class SecondAxis(Net):
    """Its condition is [time, batch]: with four time steps, or as many as rows."""

    def forward(self, x, cond):
        return self.body(x) * cond.tanh().mean(0)[:, None] + x[:, :2] * cond[0][:, None]


class InSecondAxis(Step):
    def __init__(self):
        super().__init__(seeded(SecondAxis))

    def call(self, x, cond):
        return self.net(x, cond.T)


@ways
@pytest.mark.parametrize("times", [4, 6])
def test_rows_that_lie_in_another_axis_are_cut_there(times, way):
    assert_taught(
        InSecondAxis, way, lambda module, x, cond: module.net(x, cond.T),
        data=lambda: batch(numbers(6, times, seed=5)), row_axes={"cond": 1},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row_axes", "text"),
    [({"nothing": 0}, "nothing"), ({"cond": 7}, "cond"), ({"cond": "rows"}, "cond"), (3, "")],
)
def test_a_wrong_declaration_is_refused(row_axes, text):
    with pytest.raises(ValueError, match=rf"row_axes.*{text}"):
        assert_taught(
            InSecondAxis, Way(rows=0.5), lambda module, x, cond: module.net(x, cond.T),
            data=lambda: batch(numbers(6, 4, seed=5)), row_axes=row_axes,
        )  # fmt: skip
