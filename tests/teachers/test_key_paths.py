"""Where labels stand in the batch: what is no key path is named, and what is no real number."""

import pytest
import torch

from lightning_sobolev import (
    BatchTeacher,
    DirectionalTeacher,
    MixedTeacher,
    ReducedTeacher,
    TeacherChoice,
    TraceTeacher,
)
from tests.teachers._labels import Energy, evaluated

TEACHERS = {
    "jacobian": lambda path: BatchTeacher(path),
    "forces": lambda path: BatchTeacher(forces=[path]),
    "hessian": lambda path: BatchTeacher("j", hessian=path),
    "tangents": lambda path: DirectionalTeacher(path, "jv"),
    "cotangents": lambda path: DirectionalTeacher(cotangents=path, pulled="jtu"),
    "value": lambda path: MixedTeacher("m", path),
    "mixed": MixedTeacher,
    "reduced": lambda path: ReducedTeacher(path, right="v"),
    "trace": TraceTeacher,
    "index": lambda path: TeacherChoice([torch.nn.Linear(1, 1)], path),
}


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("path", [1.5, "a..b", {"a": "b"}])
def test_what_is_no_key_path(name, path):
    with pytest.raises(ValueError, match=f"{name} must look like 'a.b.0', got"):
        TEACHERS[name](path)


@pytest.mark.parametrize("probes", [1, 2.5, "2"])
def test_a_number_of_probes_is_one(probes):
    with pytest.raises(ValueError, match="probes must be at least 2 or None, got"):
        TraceTeacher("t", probes=probes)


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        (DirectionalTeacher("x", "label"), "pushed"),
        (BatchTeacher("label"), "jacobian"),
        (TraceTeacher("label"), "trace"),
        (ReducedTeacher("label", right=torch.ones(1, 3)), "reduced"),
    ],
)
def test_labels_are_real(teacher, name):
    x = torch.ones(4, 3, dtype=torch.float64)
    batch = {"x": x, "label": torch.ones(4, dtype=torch.complex128)}
    with pytest.raises(ValueError, match=f"{name} in the batch must be real, got torch.complex"):
        evaluated(teacher, Energy(), batch)
