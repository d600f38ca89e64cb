"""Problems with structure: several inputs, masks, batches of any size, outputs of any shape."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, NetworkTeacher, SobolevTerm
from tests.plugin._loops import by_hand, refuses, taught
from tests.plugin._students import Regressor, Silent, mlp
from tests.plugin._trainers import as_loader, points, weights

EXACT = {"projection": "basis", "num_projections": None}
TERMS = {
    "cotangent": SobolevTerm(**EXACT),
    "tangent": SobolevTerm(side="tangent", **EXACT),
    "order 2": SobolevTerm(order=2, num_projections=2),
}


def same(found, expected, **options):
    assert_close(found, expected, **{"rtol": 1e-11, "atol": 1e-11, **options})


# Several inputs at once are one input whose rows are joined


@dataclass
class Condition:
    time: torch.Tensor
    index: torch.Tensor


class Split(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        self.body = mlp(dim=6, seed=seed)

    def forward(self, x, condition, *, extra):
        parts = [x.flatten(1), condition["at"].time[:, None], extra]
        return {"index": condition["at"].index, "y": self.body(torch.cat(parts, 1).double())}


class OnParts(Regressor):
    def __init__(self, low=torch.float64):
        super().__init__(Split())
        self.low = low

    def training_step(self, batch, batch_idx):
        rows, y, *_ = batch
        x, time, extra = rows[:, :4].reshape(-1, 2, 2), rows[:, 4], rows[:, 5:].to(self.low)
        condition = {"at": Condition(time, torch.arange(len(y)))}
        return mse_loss(self.net(x, condition, extra=extra)["y"], y)


WRT = ["x", "condition.at.time", "extra"]
PARTS = {"module": "net", "wrt": WRT, "output": "y"}


def on_parts(term=TERMS["cotangent"], data=None, *, low=torch.float64, teacher=None, **options):
    data = points(dim=6) if data is None else data
    teacher = mlp(dim=6, seed=7) if teacher is None else teacher
    return taught(OnParts(low), term, data, teacher=teacher, **{**PARTS, **options})


def joined(term=TERMS["cotangent"], data=None):
    data = points(dim=6) if data is None else data
    return by_hand(data, term, net=mlp(dim=6), teacher=mlp(dim=6, seed=7))


@pytest.mark.parametrize(
    ("kind", "engine"), [("cotangent", "func"), ("tangent", "tape"), ("order 2", "func")]
)
def test_several_inputs_are_one_input_whose_rows_are_joined(kind, engine):
    same(on_parts(TERMS[kind], engine=engine), joined(TERMS[kind]))


def test_a_network_that_takes_the_whole_call_is_called_as_the_student_was():
    teacher = NetworkTeacher(Split(seed=7), output="y", takes="call")
    same(on_parts(teacher=teacher), joined())


def test_inputs_of_different_types_keep_their_own():
    data = as_loader([(x.float().double(), y) for x, y in points(dim=6)])
    # the derivative in a float32 input is float32
    same(on_parts(data=data, low=torch.float32), joined(data=data), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("paths", ["2.all", ["2.x", "2.time", "2.extra"]])
def test_derivatives_with_respect_to_several_inputs_come_from_the_batch(paths):
    rows = []
    for x, y in points(dim=6):
        jacobian = torch.func.vmap(torch.func.jacrev(mlp(dim=6, seed=7)))(x).detach()
        x_part = jacobian[:, :, :4].reshape(-1, 2, 2, 2)
        parts = {"x": x_part, "time": jacobian[:, :, 4], "extra": jacobian[:, :, 5:]}
        rows.append((x, y, {"all": jacobian, **parts}))
    same(on_parts(data=as_loader(rows), teacher=BatchTeacher(paths)), joined())


class Sums(Split):
    def forward(self, x, condition, *, extra):
        whole = Condition(condition["at"].time.sum().expand(len(x)), condition["at"].index)
        return super().forward(x, {"at": whole}, extra=extra)


class Unequal(OnParts):
    def __init__(self):
        super().__init__()
        self.net = Sums()

    def training_step(self, batch, batch_idx):
        x, _ = batch
        condition = {"at": Condition(x[:3, 4], torch.arange(3))}
        return self.net(x[:, :4], condition, extra=x[:, 5:])["y"].sum()


def test_several_inputs_must_have_the_rows_of_each_other_or_of_the_output():
    text = r"must have the same number of rows, or as many as .* output 8\), got \[8, 3, 8\]"
    with pytest.raises(ValueError, match=text):
        taught(Unequal(), data=points(dim=6), **PARTS)


def test_the_arrays_of_several_inputs_must_add_up():
    rows = [(x, y, {"a": torch.ones(8, 2, 4), "b": torch.ones(8, 2, 1)}) for x, y in points(dim=6)]
    text = r"with 6 input elements in all, got \[\[8, 2, 4\], \[8, 2"
    with pytest.raises(ValueError, match=text):
        on_parts(data=as_loader(rows), teacher=BatchTeacher(["2.a", "2.b"]))


# Sets and graphs: padded, with a mask


class SetNetwork(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        self.message, self.readout = mlp(dim=6, outputs=4, seed=seed), mlp(4, 1, seed=seed + 1)

    def forward(self, batch):
        x, mask = batch["x"], batch["mask"]
        pair = mask[:, :, None] & mask[:, None, :]
        shape = (*pair.shape, x.shape[-1])
        both = [x[:, :, None].expand(shape), x[:, None].expand(shape)]
        messages = self.message(torch.cat(both, -1)) * pair[..., None]
        return self.readout(messages.sum((1, 2)))[:, 0]


def sets(width, filler):
    """Sets of one to four points, padded to some width with some filler."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 3, generator=generator, dtype=torch.float64)
    mask = torch.arange(width) < (torch.arange(8) % 4 + 1)[:, None]
    padded = torch.full((8, width, 3), filler, dtype=torch.float64)
    padded[:, :4] = x
    padded[~mask] = filler
    forces = torch.where(mask[..., None], padded.cos(), torch.nan)
    return as_loader([{"x": padded, "mask": mask, "forces": forces}])


@pytest.mark.parametrize(("kind", "rows"), [("network", 1.0), ("batch", 1.0), ("network", 0.5)])
def test_what_fills_the_places_behind_a_mask_has_no_say(kind, rows):
    found = []
    for width, filler in [(4, 0.0), (7, 5.0)]:
        network = NetworkTeacher(SetNetwork(seed=7), takes="call")
        teacher = network if kind == "network" else BatchTeacher("forces")
        term, student = SobolevTerm(rows=rows), Silent(SetNetwork(), lr=0.05)
        found.append(taught(student, term, sets(width, filler), teacher=teacher, wrt="x"))
    same(*found)
    assert (found[0] - weights(SetNetwork())).norm() > 1e-3


# Batches of any size


def test_batches_of_any_size_are_the_hand_written_loop():
    cuts = [part.split([1, 7, 3, 13]) for part in points().dataset.tensors]
    batches = as_loader(list(zip(*cuts, strict=True)))
    same(taught(Regressor(), data=batches), by_hand(batches))


# Outputs without a last axis, and complex ones


class Scalar(Regressor):
    def forward(self, x):
        return self.net(x)[:, 0]

    def training_step(self, batch, batch_idx):
        return mse_loss(self(batch[0]), batch[1][:, 0])


@pytest.mark.parametrize(
    ("kind", "engine"), [("cotangent", "tape"), ("tangent", "func"), ("order 2", "tape")]
)
def test_a_scalar_output_needs_no_axis(kind, engine):
    teacher, data = mlp(outputs=1, seed=7), points(outputs=1)
    found = taught(Scalar(mlp(outputs=1)), TERMS[kind], data, teacher=teacher, engine=engine)
    same(found, by_hand(data, TERMS[kind], net=mlp(outputs=1), teacher=teacher))


class Wave(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.body, self.give = mlp(), give

    def forward(self, x):
        return self.give(torch.fft.fft(self.body(x)))


class OnWaves(Regressor):
    def training_step(self, batch, batch_idx):
        self(batch[0])
        return self.net.body[0].weight.square().sum()


def real_and_complex(y):
    return {"wave": y, "real": torch.view_as_real(y).flatten(1)}


def test_complex_outputs_are_refused():
    text = "must return a real floating-point tensor there to have a deriv"
    for give in (lambda y: y, lambda y: {"y": y}):
        refuses(OnWaves(Wave(give)), text)
    text = r"output='wave': .* got a tensor \[8, 2\] of torch.complex128"
    refuses(OnWaves(Wave(real_and_complex)), text, output="wave")
    taught(OnWaves(Wave(real_and_complex)), teacher=mlp(outputs=4, seed=7), output="real")


class ComplexInput(Regressor):
    def training_step(self, batch, batch_idx):
        return self.net(torch.complex(batch[0], batch[0])).square().mean()


def test_a_complex_input_is_refused():
    module = ComplexInput(nn.Sequential(nn.Linear(3, 2, dtype=torch.complex128)))
    with pytest.raises(ValueError, match=r"must get a floating-point tensor.*complex128"):
        taught(module, module="net")
