"""What was chosen is said once a fit: which call, which tensors, which teacher."""

import re

import pytest
from torch import nn
from torch.nn.functional import mse_loss

from tests.kinds._by_hand import Step, X, Y, exact, fit, mlp, numbers, said, target

BATCH = (numbers(8, 3), numbers(8, 2, seed=1))


class Twice(Step):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0]), batch[1]) + self.net(-batch[0]).square().mean()


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, weight, points):
        return {"scale": weight, "values": weight[:, None] * self.body(points)}


class Calls(Step):
    def training_step(self, batch, batch_idx):
        found = self.net(batch[0][:, 0], points=batch[0])
        return mse_loss(found["values"], batch[1])


LINES = {
    "the second call is not taught": (
        Twice, {"teacher": mlp(seed=7)},
        "net(x: args.0 [8, 3]) -> [8, 2], call 1 of 2, teacher NetworkTeacher"),
    "the last call": (
        Twice, {"call": -1},
        "net(x: args.0 [8, 3]) -> [8, 2], call 2 of 2, teacher AnalyticTeacher"),
    "one call": (
        Step, {}, "net(x: args.0 [8, 3]) -> [8, 2], call 1 of 1, teacher AnalyticTeacher"),
    "paths": (
        lambda: Calls(Named()), {"wrt": "points", "output": "values"},
        "net(x: points [8, 3]) -> {path}[8, 2], call 1 of 1, teacher AnalyticTeacher"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_what_is_observed_is_said_once_a_fit(name):
    make, options, line = LINES[name]
    callback = exact(**{"teacher": target, **options})
    pattern = re.escape(line).replace(re.escape("{path}"), r"(\S+ )?")
    for _ in range(2):
        lines = said(lambda: fit(make(), [BATCH] * 3, callback))
        assert sum(bool(re.search(pattern, found)) for found in lines) == 1, "\n".join(lines)


class Head(Step):
    def __init__(self, frozen):
        super().__init__(mlp().requires_grad_(not frozen))
        self.head = nn.Linear(2, 2).double()

    def training_step(self, batch, batch_idx):
        return mse_loss(self.head(self.net(batch[0])), batch[1])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("doctor", [False, True])
def test_a_term_that_trains_nothing_is_said_once(frozen, doctor):
    callback = exact(module="net", doctor=doctor)
    lines = said(lambda: fit(Head(frozen), [(X, Y)] * 3, callback))
    found = [line for line in lines if re.search("trains nothing|nothing is trained", line)]
    assert len(found) == int(frozen), "\n".join(lines)
    assert not any("agrees with" in line for line in lines if frozen)


def test_a_frozen_part_of_a_student_that_learns_is_no_matter():
    net = mlp()
    net[0].requires_grad_(False)
    lines = said(lambda: fit(Step(net), [(X, Y)], exact(doctor=True)))
    assert not any(re.search("trains nothing|nothing is trained", line) for line in lines)
