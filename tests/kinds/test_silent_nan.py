"""A finite term may have a gradient that is not: the weights must never see it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from tests.kinds._by_hand import Step, X, Y, exact, fit, numbers, weights


class Length(nn.Module):
    """A norm that vanishes at x = 0, where its first derivative is 0 and its second is NaN."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4, bias=False).double()
        self.outer = nn.Linear(1, 2, bias=False).double()
        with torch.no_grad():
            self.inner.weight.copy_(numbers(4, 3, seed=4))
            self.outer.weight.copy_(numbers(2, 1, seed=5))

    def forward(self, x):
        return self.outer(self.inner(x).norm(dim=-1, keepdim=True).square())


class Manual(Step):
    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(mse_loss(self.net(batch[0]), batch[1]))
        optimizer.step()


GOOD, BAD = (X, Y), (torch.cat([X[:5], torch.zeros(1, 3).double()]), Y)


def test_plain_training_and_the_term_itself_are_finite():
    module = Step(Length())
    fit(module, [GOOD, BAD])
    assert weights(module).isfinite().all()
    x = BAD[0].clone().requires_grad_()
    (row,) = torch.autograd.grad(Length()(x).sum(), x)
    assert row.isfinite().all()


@pytest.mark.parametrize("doctor", [False, True])
@pytest.mark.parametrize(
    ("make", "flags"),
    [
        (Step, {}),
        (Manual, {}),
        (Step, {"accumulate_grad_batches": 2}),
        (Step, {"gradient_clip_val": 1.0}),
    ],
    ids=["automatic", "manual", "accumulated", "clipped"],
)
def test_it_is_refused_before_the_optimizer_and_the_parameter_is_named(make, flags, doctor):
    good = [GOOD] * flags.get("accumulate_grad_batches", 1)  # one step
    module, before = make(Length()), make(Length())
    fit(before, good, exact(), **flags)
    text = r"gradient.*inner\.weight|inner\.weight.*gradient"
    with pytest.raises(FloatingPointError, match=text):
        fit(module, [*good, BAD, GOOD], exact(doctor=doctor), **flags)
    assert_close(weights(module), weights(before), rtol=0, atol=0)
