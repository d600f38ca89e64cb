"""Where rows depend on each other there is no part of them to take, and the doctor says so."""

import pytest
import torch
from torch import nn

from tests.kinds._measure import Spy, Step, Way, batch, numbers, seeded, sobolev
from tests.plugin._trainers import fit_one_step

SIZE = 6


class Causal(nn.Module):
    """Rows are time steps: each sees those before it, the first one itself alone."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return self.body(x.cumsum(0))


class Recurrent(nn.Module):
    """The axis of time comes first, as it does by default."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(3, 2)

    def forward(self, x):
        return self.cell(x)[0]


class Hub(Causal):
    """A graph whose node 0 has no neighbor: each node sees itself and one other."""

    def forward(self, x, neighbor=None):
        neighbor = torch.tensor([0, 2, 3, 1, 5, 4]) if neighbor is None else neighbor
        return self.body(x + 0.5 * x[neighbor] * (neighbor != torch.arange(len(x)))[:, None])


class Edges(Causal):
    """The same by its list of edges [2, edges], the usual form."""

    def forward(self, x, edges):
        return self.body(x + torch.zeros_like(x).index_add(0, edges[0], x[edges[1]]))


class Sorted(Causal):
    """Only the order of the rows matters: the largest row is taken off."""

    def forward(self, x):
        return self.body(x - x.amax(0))


class Last(Causal):
    """One row alone sees another, at either end of the batch or in the middle."""

    def __init__(self, row):
        super().__init__()
        self.row = row

    def forward(self, x):
        sees = torch.arange(len(x)) == self.row
        return self.body(x + 0.7 * sees[:, None] * x.roll(1, 0))


class WithEdges(Step):
    def __init__(self):
        super().__init__(seeded(Edges))

    def call(self, x):
        return self.net(x, torch.tensor([[1, 2, 4, 5], [2, 1, 5, 4]]))


class WithNeighbors(Step):
    def __init__(self):
        super().__init__(seeded(Hub))

    def call(self, x):
        return self.net(x, torch.tensor([0, 2, 3, 1, 5, 4]))


def step(net, *args):
    return lambda: Step(seeded(lambda: net(*args)))


COUPLED = {
    "causal": step(Causal),
    "sequence first": step(Recurrent),
    "graph": WithNeighbors,
    "edges": WithEdges,
    "largest": step(Sorted),
}
ONE_ROW = {f"row {row}": step(Last, row) for row in range(SIZE)}
makes = pytest.mark.parametrize("name", [*COUPLED, *ONE_ROW])


def make(name):
    return {**COUPLED, **ONE_ROW}[name]()


@pytest.mark.parametrize("rows", [0.5, 0.8])
@pytest.mark.parametrize("options", [{}, {"engine": "func"}], ids=["tape", "func"])
@pytest.mark.parametrize("name", COUPLED)
def test_a_part_of_coupled_rows_is_refused(name, options, rows):
    module = make(name)
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(ValueError, match=r"rows"):
        fit_one_step(module, batch(), sobolev(Way(rows=rows, options=options), Spy()))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_coupled_rows_are_refused_whichever_rows_are_drawn_first(seed):
    """The first two of three are a sequence of their own: they look as if they were not coupled."""
    with pytest.raises(ValueError, match=r"rows"):
        fit_one_step(make("causal"), batch(size=3), sobolev(Way(rows=0.67), Spy(), seed=seed))


@makes
def test_the_doctor_warns_of_coupled_rows_wherever_they_are(name):
    with pytest.warns(UserWarning, match=r"rows .* coupled"):
        fit_one_step(make(name), batch(), sobolev(Way(), Spy(), doctor=True))


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_the_doctor_is_silent_where_no_row_sees_another(size):
    fit_one_step(Step(), batch(size=size), sobolev(Way(), Spy(), doctor=True))


@pytest.mark.parametrize("place", [0, 17, 39])
def test_the_doctor_sees_one_coupled_row_among_many(place):
    module = step(Last, place)()
    with pytest.warns(UserWarning, match=r"rows .* coupled"):
        fit_one_step(module, batch(size=40), sobolev(Way(), Spy(), doctor=True))


@pytest.mark.parametrize("rows", [0.5, 1.0])
def test_rows_that_are_whole_sequences_are_not_coupled(rows):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(3, 2, batch_first=True)

        def forward(self, x):
            return self.cell(x.cumsum(1))[0][:, -1]

    def data():
        return [numbers(4, 5, 3, seed=1), numbers(4, 2, seed=2)]

    used = sobolev(Way(rows=rows), Spy(), doctor=True)
    fit_one_step(step(Inside)(), data(), used)
