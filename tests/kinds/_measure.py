"""What one step of plain descent subtracted because of the term, and what it should have been."""

import functools
from dataclasses import dataclass, field

import lightning.pytorch as L
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import AnalyticTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.kinds import _reference as reference
from tests.plugin._trainers import fit_one_step

BATCH = 6
TERMS = {
    "vjp": {"order": 1},
    "jvp": {"order": 1, "side": "tangent"},
    "order_2": {"order": 2},
    "value": {"order": 0},
}
EXACT = {"projection": "basis", "num_projections": None, "normalize": "none"}


def target(x):
    """What the teacher knows: two outputs of any input."""
    flat = x.flatten(1)
    return torch.stack([flat.sum(-1).sin(), flat.square().sum(-1).cos()], -1)


def other(x):
    flat = x.flatten(1)
    return torch.stack([flat.sum(-1).cos(), flat.square().sum(-1)], -1)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def batch(*more, size=BATCH, dim=3):
    """Inputs, values and whatever else the step hands to the student; anew for each call."""
    return [numbers(size, dim, seed=1), numbers(size, 2, seed=2), *[t.clone() for t in more]]


def seeded(make, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def small_net(dim=3, width=4, outputs=2):
    return seeded(
        lambda: nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, outputs))
    )


class Step(L.LightningModule):
    """One call of ``self.net``; a kind of step overrides ``call``."""

    def __init__(self, net=None):
        super().__init__()
        self.net = small_net() if net is None else net

    def call(self, x, *rest):
        return self.net(x, *rest)

    def training_step(self, batch, batch_idx):
        x, y, *rest = batch
        return mse_loss(self.call(x, *rest), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Spy(AnalyticTeacher):
    """A closed form that remembers where it was asked."""

    def __init__(self, value=target):
        super().__init__(self.answer)
        self.function, self.asked = value, []

    def answer(self, x):
        point = x.detach().double().clone()
        if not self.asked or not torch.equal(self.asked[-1], point):
            self.asked.append(point)
        return self.function(x)


@dataclass(frozen=True)
class Way:
    """One way to the same gradient: a kind of term, the rows it takes, and where it is derived."""

    kind: str = "vjp"
    rows: float = 1.0
    options: dict = field(default_factory=dict)
    precision: str = "64-true"

    @property
    def rtol(self):
        return (
            1e-4 if self.precision != "64-true" else 1e-7 if self.kind in ("vjp", "value") else 1e-5
        )


FUNC = {"engine": "func"}
OBSERVED = {
    "tape": Way(),
    "tape, tangents": Way("jvp"),
    "tape, order 2": Way("order_2"),
    "func": Way(options=FUNC),
    "func, tangents": Way("jvp", options=FUNC),
}
REPLAYED = {
    "all rows": Way(rows=0.9999),
    "half of the rows": Way(rows=0.5),
    "half of the rows, func": Way("jvp", rows=0.5, options=FUNC),
    "half precision": Way(precision="bf16-mixed"),
    "half precision, tangents": Way("jvp", precision="bf16-mixed"),
    "batch norm aside": Way(options={"batch_norm": "eval"}),
    "order 2, func": Way("order_2", options=FUNC),
    "order 2, half of the rows": Way("order_2", rows=0.5),
}
WAYS = {**OBSERVED, **REPLAYED}
# Each engine, side, order, precision and part of the rows once; test_reference has them all.
_MAIN = ("tape", "func, tangents", "half of the rows", "half precision, tangents", "order 2, func")
MAIN = {name: WAYS[name] for name in _MAIN}


def in_turn(kinds, ways, each=1):
    """Pair each kind with so many of the ways: not all with all, but each way with some."""
    names = list(ways)
    pairs = enumerate(kinds)
    return [(k, names[(n * each + i) % len(names)]) for n, k in pairs for i in range(each)]


def sobolev(way, teacher=target, *, weight=1.0, name=None, **options):
    teacher = AnalyticTeacher(teacher) if callable(teacher) else teacher
    term = SobolevTerm(rows=way.rows, weight=weight, name=name, **TERMS[way.kind], **EXACT)
    options = {"doctor": False, "module": "net", **way.options, **options}
    return SobolevCallback(teacher, SobolevSpec(terms=[term]), **options)


def moved(make, data, *callbacks, precision="64-true"):
    """Return by how much one step lowered each parameter."""
    module = make() if precision == "64-true" else make().float()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    data = data() if precision == "64-true" else single(data())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit_one_step(module, data, *callbacks, precision=precision)
    return {n: before[n] - p.detach() for n, p in module.named_parameters()}


def update(make, data, *callbacks, precision="64-true"):
    """Return what the callbacks' terms had the first step subtract, by parameter."""
    taught = moved(make, data, *callbacks, precision=precision)
    plain = _plainly_moved(make, data, precision)
    return {name: (taught[name] - plain[name]).double() for name in taught}


@functools.cache
def _plainly_moved(make, data, precision):
    return moved(make, data, precision=precision)


def single(tree):
    """Return a batch in float32."""
    if isinstance(tree, dict):
        return {key: single(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [single(value) for value in tree]
    return tree.float() if isinstance(tree, torch.Tensor) and tree.is_floating_point() else tree


def chosen(asked, x):
    """Return the numbers of those rows of x at which the teacher was asked, and nowhere else."""
    distance = (asked.flatten(1)[:, None] - x.flatten(1)).abs().amax(-1)
    assert_close(distance.amin(1), torch.zeros(len(asked)).double(), rtol=0, atol=1e-6)
    return distance.argmin(1)


def assert_updates(found, expected, rtol):
    """Two gradients agree, relative to the largest entry; neither is zero."""
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3
    assert_close(found, expected, rtol=rtol, atol=rtol * largest)


def observed_call(module, x, *rows):
    return module.net(x, *rows)


def assert_taught(
    make, way, function=observed_call, *,
    data=batch, prepare=None, points=None, extra=None, **options,
):  # fmt: skip
    """The step's share of the term is that of ``function(module, x, *rows)``, the observed call.

    ``points`` are its inputs if they are not the batch's; ``rows`` are ``extra`` or else what the
    batch holds behind x and y, cut to the rows the teacher was asked at; ``prepare`` brings the
    reference's module to where the observed call had it.
    """
    spy = Spy()
    found = update(make, data, sobolev(way, spy, **options), precision=way.precision)
    module = make()
    if prepare is not None:
        prepare(module)
    x, _, *rest = data()
    x, rest = x if points is None else points, rest if extra is None else extra
    rows = chosen(spy.asked[-1], x)
    assert len(rows) == max(1, round(way.rows * len(x)))
    rest = [part[rows] for part in rest]
    value = reference.term(way.kind, lambda p, *r: function(module, p, *r), target, x[rows], *rest)
    assert_updates(found, reference.gradient(value, module), way.rtol)


def assert_parts(make, way, parts, *, factor=1.0, data=batch, **options):
    """The step's terms are those of ``net`` at ``parts``, the points of one call each."""
    spy = Spy()
    found = update(make, data, sobolev(way, spy, **options), precision=way.precision)
    assert len(spy.asked) == len(parts)
    module = make()
    points = [part[chosen(at, part)] for at, part in zip(spy.asked, parts, strict=True)]
    value = sum(reference.term(way.kind, module.net, target, part) for part in points)
    assert_updates(found, reference.gradient(factor * value, module), way.rtol)
