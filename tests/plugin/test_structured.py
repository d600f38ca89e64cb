"""Problems with structure: several inputs, masks, batches of any size, outputs of any shape."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    NetworkTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from tests.plugin._loops import train_by_hand
from tests.plugin._ordinary import Fourier
from tests.plugin._refusals import refuses
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import as_loader, fit, points, weights

EXACT = {"projection": "basis", "num_projections": None}
TERMS = {
    "cotangent": SobolevTerm(**EXACT),
    "tangent": SobolevTerm(side="tangent", **EXACT),
    "order 2": SobolevTerm(order=2, **EXACT),
}


def same(found, expected, **options):
    assert_close(weights(found), weights(expected), **{"rtol": 1e-11, "atol": 1e-11, **options})


def taught(student, data, teacher, term, /, **options):
    teacher = NetworkTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
    fit(student, data, SobolevCallback(teacher, SobolevSpec(terms=[term]), **options))
    return student


# Several inputs at once are one input whose rows are joined


@dataclass
class Condition:
    time: torch.Tensor
    index: torch.Tensor


class Split(nn.Module):
    """Takes in three places what the body takes as one row."""

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
        rows, y = batch
        x, time, extra = rows[:, :4].reshape(-1, 2, 2), rows[:, 4], rows[:, 5:].to(self.low)
        condition = {"at": Condition(time, torch.arange(len(y)))}
        return mse_loss(self.net(x, condition, extra=extra)["y"], y)


WRT = ["x", "condition.at.time", "extra"]
PARTS = {"module": "net", "wrt": WRT, "output": "y"}


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_several_inputs_are_one_input_whose_rows_are_joined(kind, engine):
    term, data = TERMS[kind], points(dim=6)
    joined = taught(Regressor(mlp(dim=6)), data, mlp(dim=6, seed=7), term)
    split = taught(OnParts(), data, mlp(dim=6, seed=7), term, engine=engine, **PARTS)
    same(split, joined)


def test_a_network_that_takes_the_whole_call_is_called_as_the_student_was():
    term = TERMS["cotangent"]
    joined = taught(Regressor(mlp(dim=6)), points(dim=6), mlp(dim=6, seed=7), term)
    teacher = NetworkTeacher(Split(seed=7).float(), output="y", takes="call")
    teacher.network.double()
    same(taught(OnParts(), points(dim=6), teacher, term, **PARTS), joined)


def test_inputs_of_different_types_keep_their_own():
    term = SobolevTerm(**EXACT)
    data = [(x.float().double(), y) for x, y in points(dim=6)]
    joined = taught(Regressor(mlp(dim=6)), as_loader(data), mlp(dim=6, seed=7), term)
    split = taught(OnParts(torch.float32), as_loader(data), mlp(dim=6, seed=7), term, **PARTS)
    same(split, joined, rtol=1e-6, atol=1e-7)  # the derivative in a float32 input is float32


class WithTable(OnParts):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


@pytest.mark.parametrize("paths", ["2.all", ["2.x", "2.time", "2.extra"]])
def test_derivatives_with_respect_to_several_inputs_come_from_the_batch(paths):
    teacher = mlp(dim=6, seed=7)
    rows = []
    for x, y in points(dim=6):
        jacobian = torch.func.vmap(torch.func.jacrev(teacher))(x).detach()
        parts = {
            "all": jacobian,
            "x": jacobian[:, :, :4].reshape(-1, 2, 2, 2),
            "time": jacobian[:, :, 4],
            "extra": jacobian[:, :, 5:],
        }
        rows.append((x, y, parts))
    expected = taught(OnParts(), points(dim=6), teacher, TERMS["cotangent"], **PARTS)
    table = taught(WithTable(), as_loader(rows), BatchTeacher(paths), TERMS["cotangent"], **PARTS)
    same(table, expected)


def test_only_the_named_inputs_are_differentiated():
    term = TERMS["cotangent"]
    alone = taught(OnParts(), points(dim=6), zero, term, **{**PARTS, "wrt": ["condition.at.time"]})
    number = taught(OnParts(), points(dim=6), zero, term, **{**PARTS, "wrt": "condition.at.time"})
    same(alone, number, rtol=0, atol=0)
    both = taught(OnParts(), points(dim=6), zero, term, **PARTS)
    assert (weights(both) - weights(alone)).norm() > 1e-3


zero = AnalyticTeacher(lambda x: torch.stack([x.reshape(len(x), -1).sin().sum(1)] * 2, 1))


class Unequal(OnParts):
    def training_step(self, batch, batch_idx):
        x, _ = batch
        condition = {"at": Condition(x[:3, 4], torch.arange(3))}
        return self.net(x[:, :4], condition, extra=x[:, 5:])["y"].sum()


def test_several_inputs_must_have_the_same_rows():
    text = r"several inputs must have the same number of rows, got a tensor \[8, 4\]"
    with pytest.raises(ValueError, match=text):
        taught(Unequal(), points(dim=6), zero, TERMS["cotangent"], **PARTS)


@pytest.mark.parametrize("wrt", [[], ["x", "x"]])
def test_inputs_are_named_once(wrt):
    with pytest.raises(ValueError, match="wrt must name one or more inputs, each once, got"):
        SobolevCallback(mlp(), wrt=wrt)


def test_the_arrays_of_several_inputs_must_add_up():
    rows = [(x, y, {"a": torch.ones(8, 2, 4), "b": torch.ones(8, 2, 1)}) for x, y in points(dim=6)]
    teacher = BatchTeacher(["2.a", "2.b"])
    with pytest.raises(
        ValueError, match=r"with 6 input elements in all, got \[\[8, 2, 4\], \[8, 2"
    ):
        taught(WithTable(), as_loader(rows), teacher, TERMS["cotangent"], **PARTS)


# Sets and graphs: padded, with a mask


class SetNetwork(nn.Module):
    """Messages between the members of a set that are there, and their sum."""

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


class OnSets(Regressor):
    def __init__(self):
        super().__init__(SetNetwork())

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()


def sets(width, filler):
    """Sets of one to four points, padded to some width with some filler."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 3, generator=generator, dtype=torch.float64)
    sizes = torch.arange(8) % 4 + 1
    mask = torch.arange(width) < sizes[:, None]
    padded = torch.full((8, width, 3), filler, dtype=torch.float64)
    padded[:, :4] = x
    padded[~mask] = filler
    forces = torch.where(mask[..., None], padded.cos(), torch.nan)
    return as_loader([{"x": padded, "mask": mask, "forces": forces}])


def set_teachers():
    network = NetworkTeacher(SetNetwork(seed=7), takes="call")
    return {"network": network, "batch": BatchTeacher("forces")}


@pytest.mark.parametrize("kind", set_teachers())
@pytest.mark.parametrize("term", [SobolevTerm(), SobolevTerm(rows=0.5)])
def test_what_fills_the_places_behind_a_mask_has_no_say(term, kind):
    found = [
        taught(OnSets(), sets(width, filler), set_teachers()[kind], term, wrt="x")
        for width, filler in [(4, 0.0), (7, 5.0)]
    ]
    same(*found)
    assert (weights(found[0]) - weights(OnSets())).norm() > 1e-3


# Batches of any size


def test_batches_of_any_size_are_the_hand_written_loop():
    x, y = points().dataset.tensors
    cuts = [x.split([1, 7, 3, 13]), y.split([1, 7, 3, 13])]
    batches = list(zip(*cuts, strict=True))
    expected = mlp()
    train_by_hand(expected, mlp(seed=7), batches, SobolevTerm())
    found = taught(Regressor(), as_loader(batches), mlp(seed=7), SobolevTerm())
    assert_close(weights(found), weights(expected))


class OnSequences(Regressor):
    """Pictures or sequences of any length."""

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()


def test_inputs_of_another_shape_in_every_batch():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(4, 2, length, generator=generator).double() for length in (9, 5, 12)]
    teacher = AnalyticTeacher(lambda x: x.square().mean((1, 2))[:, None].expand(-1, 3))
    module = OnSequences(net.double())
    before = weights(module)
    taught(module, as_loader(data), teacher, SobolevTerm(normalize="none"))
    assert weights(module).isfinite().all()
    assert (weights(module) - before).norm() > 1e-3


# Outputs without a last axis, and complex ones


class Scalar(Regressor):
    def forward(self, x):
        return self.net(x)[:, 0]

    def training_step(self, batch, batch_idx):
        return mse_loss(self(batch[0]), batch[1][:, 0])


class OneColumn(Scalar):
    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return mse_loss(self(batch[0])[:, 0], batch[1][:, 0])


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_a_scalar_output_needs_no_axis(kind, engine):
    teacher = mlp(outputs=1, seed=7)
    found = [
        taught(cls(mlp(outputs=1)), points(outputs=1), teacher, TERMS[kind], engine=engine)
        for cls in (Scalar, OneColumn)
    ]
    same(*found)


class Wave(nn.Module):
    """Real inside; what is complex comes out."""

    def __init__(self, give):
        super().__init__()
        self.body, self.give = mlp(), give

    def forward(self, x):
        return self.give(torch.fft.fft(self.body(x)))


@pytest.mark.parametrize("give", [lambda y: y, lambda y: (y, y), lambda y: {"y": y}])
def test_complex_outputs_are_refused(give):
    class OnWaves(Regressor):
        def training_step(self, batch, batch_idx):
            self(batch[0])
            return self.net.body[0].weight.square().sum()

    refuses(OnWaves(Wave(give)), "must return a real floating-point tensor there to have a deriv")


def test_a_complex_output_beside_a_real_one_is_refused_where_it_is_named():
    class OnWaves(Regressor):
        def training_step(self, batch, batch_idx):
            return self(batch[0])["real"].square().mean()

    def both():
        return OnWaves(Wave(lambda y: {"wave": y, "real": torch.view_as_real(y).flatten(1)}))

    refuses(both(), r"output='wave': .* got a tensor \[8, 2\] of torch.complex128", output="wave")
    teacher = NetworkTeacher(mlp(outputs=4, seed=7))
    fit(both(), points(), SobolevCallback(teacher, output="real"))


class ComplexInput(Regressor):
    def training_step(self, batch, batch_idx):
        return self.net(torch.complex(*batch)).square().mean()


def test_a_complex_input_is_refused():
    net = nn.Sequential(nn.Linear(3, 2, dtype=torch.complex128))
    data = as_loader([(x, x) for x, _ in points()])
    module = ComplexInput(net)
    with pytest.raises(ValueError, match=r"must get a floating-point tensor.*complex128"):
        fit(module, data, SobolevCallback(mlp(), module="net"))


def test_complex_inside_is_no_obstacle():
    """Fourier layers: real in, real out, complex parameters."""
    module = Regressor(Fourier())
    fit(module, points(), SobolevCallback(mlp(seed=7)))
