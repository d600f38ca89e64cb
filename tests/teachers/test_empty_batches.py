"""A batch without rows has no terms: a rank or a filter may leave nothing of one."""

import pytest
import torch
from torch import nn

from lightning_sobolev import (
    AdjointTeacher,
    BatchTeacher,
    DirectionalTeacher,
    MixedTeacher,
    ReducedTeacher,
    SobolevTerm,
    TraceTeacher,
)
from tests.teachers._labels import Energy, evaluated

ONE = {
    "v": (0, 4, 3), "jv": (0, 4, 2), "u": (0, 4, 2), "jtu": (0, 4, 3), "r": (0, 4, 4),
    "half": (0, 2, 4), "j": (0, 2, 3),
}  # fmt: skip
SCALAR = {"v": (0, 4, 3), "hv": (0, 4, 3), "t": (0,)}
TEACHERS = {
    "tangents": lambda: DirectionalTeacher("v", "jv", per_step=1),
    "cotangents": lambda: AdjointTeacher("u", "jtu"),
    "reduced": lambda: ReducedTeacher("r", left="u", right="v"),
    "reduced inputs": lambda: ReducedTeacher("half", right=torch.ones(4, 3)),
    "list": lambda: BatchTeacher(["j"]),
    "curvature": lambda: DirectionalTeacher("v", "hv", order=2, per_step=1),
    "trace": lambda: TraceTeacher("t", matrix=[1.0, 2.0, 0.0]),
    "probes": lambda: TraceTeacher("t", probes=2),
}


def nothing(shapes):
    shapes = {"x": (0, 3)} | shapes
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_nothing_is_compared(kind, side):
    teacher, is_scalar = TEACHERS[kind](), kind in ("curvature", "trace", "probes")
    net = Energy(outputs=None if is_scalar else 2)
    terms = teacher.default_term or SobolevTerm(side=side)
    batch = nothing(SCALAR if is_scalar else ONE)
    found, gradients = evaluated(teacher, net, batch, terms=terms)
    assert found == 0.0
    assert all(not gradient.any() for gradient in gradients)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = Energy()

    def forward(self, a, b):
        return self.energy(torch.cat([a, b], 1))


@pytest.mark.parametrize("teacher", [MixedTeacher("m"), BatchTeacher(["ja", "jb"])])
def test_nothing_of_two_inputs_is_compared(teacher):
    batch = nothing({"a": (0, 2), "b": (0, 1), "m": (0, 2, 1), "ja": (0, 2), "jb": (0, 1)})
    found, _ = evaluated(teacher, Both(), batch, "a", "b", wrt=["a", "b"])
    assert found == 0.0
