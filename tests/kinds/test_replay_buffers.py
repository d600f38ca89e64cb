"""A replay moves no buffer: after the step all are those of a run without the term."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from tests.kinds._measure import WAYS, Spy, Step, assert_taught, batch, moved, seeded, sobolev


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.body(self.seen(x))


class Counts(Body):
    """The count is part of the function: an observed call that is run anew must not be the next."""

    def seen(self, x):
        with torch.no_grad():
            self.count += 1.0
        return x * self.count.clone()


class Reassigns(Body):
    """The usual way under torch.func, where a buffer must not be written into."""

    def seen(self, x):
        self.count = self.count + 1.0
        return x * self.count


class RunningMean(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((3,), 0.1))

    def seen(self, x):
        mean = self.mean.clone()
        with torch.no_grad():
            self.count += 1.0
            self.mean += (x.mean(0) - self.mean) / self.count
        return x - mean


class Codebook(Body):
    """Moves its codes toward what it was given, as vector quantization does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(2, 3))

    def seen(self, x):
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        x = x + self.codes[nearest]
        with torch.no_grad():
            self.codes.index_add_(0, nearest, 0.1 * (x.detach() - self.codes[nearest]))
        return x


class Instances(Body):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True)

    def seen(self, x):
        return self.norm(x[:, None])[:, 0]


class Batches(Instances):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def seen(self, x):
        return self.norm(x)


class Spectral(Body):
    def __init__(self):
        super().__init__()
        parametrizations.spectral_norm(self.body[0])
        self.body[0].parametrizations.weight.original.data.mul_(torch.rand(4, 3))

    def seen(self, x):
        return x


class Lazily(Body):
    """A buffer that is None until the first call, whose rows it couples."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", None)

    def seen(self, x):
        if self.scale is None:
            self.scale = x.detach().abs().amax()
        return x / self.scale


WRITES = [Counts, RunningMean, Codebook, Instances, Batches, Spectral]  # in place
TAPE = ("tape", "tape, order 2", "half of the rows", "half precision, tangents")
WHOLE = [name for name in TAPE if WAYS[name].rows == 1.0]
# One shift of all rows does not move a batch norm's output: order 2 warns that it is zero.
ZERO = [(name, Batches) for name in TAPE if "order 2" in name]
CASES = [
    *[(n, net) for n in TAPE for net in (*WRITES, Reassigns) if (n, net) not in ZERO],
    *[(name, Lazily) for name in WHOLE],
    *[("half of the rows, func", Reassigns), ("order 2, func", Reassigns), ("func", Reassigns)],
]


@pytest.mark.parametrize(("name", "net"), CASES)
def test_all_buffers_are_those_of_a_run_without_the_term(net, name):
    way, after = WAYS[name], []
    for callbacks in ([], [sobolev(way, Spy())]):
        module = Step(seeded(net))
        moved(lambda module=module: module, batch, *callbacks, precision=way.precision)
        after.append({n: buffer.clone() for n, buffer in module.named_buffers()})
    assert after[0]
    assert_close(after[1], after[0], rtol=1e-6, atol=1e-7)


def once(module):
    """Bring the state to where the observed call had it: behind its own change."""
    net = module.net
    if isinstance(net, Counts | Reassigns):
        net.seen = lambda x: x  # the first call's count is one
    if isinstance(net, Codebook):
        net.seen = lambda x: x + net.codes[torch.cdist(x.detach(), net.codes).argmin(1)]
    if isinstance(net, RunningMean):
        net.seen = lambda x: x - net.mean
    if isinstance(net, Lazily):
        scale = batch()[0].abs().amax()
        net.seen = lambda x: x / scale


STATEFUL = [Counts, Reassigns, RunningMean, Codebook]


@pytest.mark.parametrize(
    ("name", "net"),
    [
        *[(name, net) for name in TAPE for net in STATEFUL],
        *[(name, Lazily) for name in WHOLE],
        *[(name, Reassigns) for name in ("func", "half of the rows, func", "order 2, func")],
    ],
)
def test_the_term_is_of_the_function_with_the_buffers_of_the_call(net, name):
    assert_taught(lambda: Step(seeded(net)), WAYS[name], prepare=once)
