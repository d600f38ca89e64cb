"""Stored derivatives belong to the stored inputs and outputs, and to no others."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher
from tests.kinds._by_hand import (
    Step,
    X,
    Y,
    assert_is,
    distance,
    exact,
    fit,
    jacobian,
    mlp,
    numbers,
    said,
    share,
    slope,
    weights,
)

J = numbers(6, 2, 3, seed=2)
BATCH = (X, Y, J)
TEXT = "no tensor of the batch"  # the observed input is


def stored(on="identity", *, term=(), doctor=False, **options):
    return exact(BatchTeacher(jacobian=2, **options), on=on, term=term, doctor=doctor)


@pytest.mark.parametrize("on", ["softmax", "log_softmax", torch.square])
def test_an_output_map_is_refused_unless_what_is_stored_is_mapped(on):
    module = Step()
    with pytest.raises(ValueError, match="stores_mapped"):
        fit(module, [BATCH], stored(on))
    assert_close(weights(module), weights(Step()), rtol=0, atol=0)


@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_what_is_stored_mapped_is_compared_with_the_mapped_student(side):
    callback, net = stored("softmax", stores_mapped=True, term={"side": side}), mlp()
    ours = jacobian(lambda x: net(x).softmax(-1), X)
    assert_is(share(Step, [BATCH], callback), slope(distance(ours, J), net))


def step_with(prepare):
    class Prepares(Step):
        def training_step(self, batch, batch_idx):
            x = prepare(batch)
            return mse_loss(self.net(x), batch[1].to(x.dtype))

    return Prepares


ORDER = torch.tensor([3, 0, 5, 1, 4, 2])
CHANGED = {
    "permuted": lambda batch: batch[0][ORDER],
    "rescaled": lambda batch: (batch[0] - 1.0) / 10.0,
    "mixed": lambda batch: 0.7 * batch[0] + 0.3 * batch[0].flip(0),
    "with noise": lambda batch: batch[0] + 0.01 * J[:, 0],
}
PASSED_ON = {
    "as it is": lambda batch: batch[0],
    "cloned": lambda batch: batch[0].clone(),
    "detached": lambda batch: batch[0].detach().requires_grad_(),
    "times one": lambda batch: batch[0] * 1.0,
    "there and back": lambda batch: batch[0].float().double(),
    "as a view": lambda batch: batch[0].view(6, 1, 3).flatten(1),
}


@pytest.mark.parametrize("doctor", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_inputs_that_the_step_has_changed_are_said_once(name, doctor):
    module = step_with(CHANGED[name])()
    lines = said(lambda: fit(module, [BATCH] * 3, stored(doctor=doctor)))
    assert sum(TEXT in line for line in lines) == 1, lines


@pytest.mark.parametrize("rows", [1.0, 0.5])
@pytest.mark.parametrize("name", PASSED_ON)
def test_inputs_that_are_passed_on_are_not(name, rows):
    callback = stored(term={"rows": rows})
    lines = said(lambda: fit(step_with(PASSED_ON[name])(), [BATCH] * 2, callback))
    assert not any(TEXT in line for line in lines)


NESTED = {
    "cast": ({"x": X.float(), "y": Y, "j": J}, lambda batch: batch["x"].double()),
    "flattened": ({"x": X[:, None], "y": Y, "j": J}, lambda batch: batch["x"].flatten(1)),
    "nested": ({"deep": [{"x": X}], "y": Y, "j": J}, lambda batch: batch["deep"][0]["x"]),
}


@pytest.mark.parametrize("name", NESTED)
def test_the_values_decide_and_not_the_tensor_itself(name):
    batch, prepare = NESTED[name]

    class Reads(Step):
        def training_step(self, batch, batch_idx):
            return mse_loss(self.net(prepare(batch)), batch["y"])

    lines = said(lambda: fit(Reads(), [batch], exact(BatchTeacher("j"))))
    assert not any(TEXT in line for line in lines)
