"""Stored derivatives belong to the batch's own inputs; whoever observes others is told so once."""

import pytest
import torch

from lightning_sobolev import BatchTeacher, DirectionalTeacher, SobolevTerm
from lightning_sobolev._types import Query

TEXT = "equals no tensor of the batch, but the stored derivatives belong to the batch's own inputs"


@pytest.fixture
def batch(generator):
    randn = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    images, time = randn(6, 2, 3), randn(6)
    more = {
        "label": torch.arange(6),
        "wave": torch.ones(6).to(torch.complex64),
        "empty": randn(6, 0),
    }
    return {"inputs": (images, time), "jacobian": randn(6, 4, 6), "bank": randn(9, 6), **more}


def asked(teacher, x, batch, **more):
    return teacher.at(Query(x, batch=batch, **more))


@pytest.mark.parametrize(
    "build",
    [
        lambda images, _: images,
        lambda images, _: images.flatten(1),
        lambda images, _: images.float(),
        lambda images, _: images.bfloat16().double(),
        lambda images, _: images.half().float(),
        lambda _, time: time,
        lambda _, time: time[:, None],
        lambda images, time: torch.cat([time[:, None], images.flatten(1)], 1),
        lambda images, time: torch.cat([images.flatten(1), time[:, None]], 1).float(),
        lambda _, time: torch.stack([time, time], 1),
        lambda *_: torch.arange(6.0),
        lambda images, _: images.requires_grad_(),
    ],
)
def test_the_batchs_own_inputs_cast_reshaped_or_joined_are_known(build, batch):
    x = build(*batch["inputs"])
    asked(BatchTeacher(value="jacobian"), x, batch)  # a warning is an error here
    rows = torch.tensor([5, 2])
    asked(BatchTeacher(value="jacobian"), x[rows], batch, rows=rows)


def test_unknown_entries_of_the_input_are_themselves(batch):
    batch["inputs"][0][1, 0, 0] = float("nan")
    asked(BatchTeacher(value="jacobian"), batch["inputs"][0].float(), batch)


@pytest.mark.parametrize(
    "build",
    [
        lambda images, _: images + 1e-9,
        lambda images, _: images.flip(0),
        lambda images, _: images.mT,
        lambda images, _: images.flatten(1)[:, :3],
        lambda images, time: torch.cat([images.flatten(1), 2 * time[:, None]], 1),
    ],
)
def test_other_inputs_are_named_once(build, batch):
    x, teacher = build(*batch["inputs"]), BatchTeacher(value="jacobian")
    with pytest.warns(UserWarning, match=f"BatchTeacher: the observed input {TEXT}"):
        asked(teacher, x, batch)
    asked(teacher, x, batch)  # a second warning would be an error
    rows = torch.tensor([0, 3])
    with pytest.warns(UserWarning, match=TEXT):
        asked(BatchTeacher(value="jacobian"), x[rows], batch, rows=rows)
    with pytest.warns(UserWarning, match=TEXT):  # the right input, at other rows
        asked(BatchTeacher(value="jacobian"), batch["inputs"][0][rows], batch, rows=rows + 1)


def test_only_the_first_queries_are_looked_at(batch):
    teacher, x = BatchTeacher(value="jacobian"), batch["inputs"][0]
    asked(teacher, x[:0], {"jacobian": batch["jacobian"][:0]})  # nothing to compare
    for _ in range(2):
        asked(teacher, x, batch)
    with pytest.warns(UserWarning, match=TEXT):
        asked(teacher, x * 1.01, batch)
    teacher = BatchTeacher(value="jacobian")
    for _ in range(3):
        asked(teacher, x, batch)
    asked(teacher, x * 1.01, batch)


def test_directional_derivatives_are_looked_at_too(batch):
    x = batch["inputs"][1][:, None]
    batch |= {"v": torch.ones_like(x), "jv": torch.ones_like(x)}
    teacher = DirectionalTeacher("v", "jv")
    with pytest.warns(UserWarning, match=f"DirectionalTeacher: the observed input {TEXT}"):
        teacher.directions(Query(2 * x, batch=batch), SobolevTerm(side="tangent"))
    asked(teacher, 2 * x, batch)
    asked(DirectionalTeacher("v", "jv"), x, batch)
