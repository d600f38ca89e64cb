"""The table of layers in docs/layers.md: python -m tests.plugin._layer_table."""

import warnings
from functools import partial

import torch
from torch import nn

from tests.plugin._architectures import case
from tests.plugin._gradients import TERMS, compare
from tests.plugin._ordinary import ORDINARY, PIECEWISE_LINEAR
from tests.plugin._students import Silent

COLUMNS = [(kind, engine) for kind in TERMS for engine in ("tape", "func")]
REFUSED = {
    (name, kind, "func"): "refused" for name in ("batch norm", "residual network") for kind in TERMS
} | {("lstm", "jvp", "func"): "refused"}
"""BatchNorm in train mode under torch.func, and LSTM in forward mode."""


class SameMask(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return self.net(x)


def is_zero(name, kind):
    return kind == "order 2" and name in PIECEWISE_LINEAR


def deviation(name, kind, engine):
    """Largest deviation of the trained slopes from finite differences, relative to the largest."""
    make, shape = ORDINARY[name]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = Silent(SameMask(make()).double())
        if name == "spectral norm":  # its power iteration shall stand still
            for _ in range(300):
                module.net(torch.randn(shape, dtype=torch.float64))
    trained, expected = compare(case(module, *shape), TERMS[kind], engine)
    return float((trained - expected).abs().max() / expected.abs().max())


def cell(name, kind, engine):
    if (name, kind, engine) in REFUSED:
        return REFUSED[name, kind, engine]
    if is_zero(name, kind):
        return "zero, warns"
    return f"{deviation(name, kind, engine):.0e}"


def table():
    titles = [f"{kind}, {engine}" for kind, engine in COLUMNS]
    yield "| architecture | " + " | ".join(titles) + " |"
    yield "|---" * (len(titles) + 1) + "|"
    for name in ORDINARY:
        yield f"| {name} | " + " | ".join(partial(cell, name)(*column) for column in COLUMNS) + " |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in table():
        print(line, flush=True)
