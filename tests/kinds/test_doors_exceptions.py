"""Exceptions of the user's own pass through; torch's keep their type and get a note."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from tests.kinds._by_hand import SIDES, Step, Y, exact, fit, mlp, numbers, target, weights


class Stops(NotImplementedError):
    pass


ERRORS = [
    NotImplementedError("the focal loss is not implemented"),
    RuntimeError("derivative of my layer is not implemented"),
    Stops("forward AD, saved tensor hooks and use_reentrant are my words, too"),
    ValueError("call= and engine= are taken"),
]


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.body, self.error = mlp(), error

    def forward(self, x):
        raise self.error


class Broken(Step):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        raise self.error


class Backward(nn.Module):
    """Fails in a hook of the backward pass."""

    def __init__(self, error):
        super().__init__()
        self.body, self.error = mlp(), error

    def forward(self, x):
        y = self.body(x)
        y.register_hook(self.fail)
        return y

    def fail(self, gradient):
        raise self.error


PLACES = {
    "the student": lambda error: (Step(Raises(error)), target),
    "the step": lambda error: (Broken(error), target),
    "the teacher": lambda error: (Step(), Raises(error)),
    "the backward pass": lambda error: (Step(Backward(error)), target),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", PLACES)
def test_an_exception_of_the_users_keeps_type_and_text(place, error):
    module, teacher = PLACES[place](error)
    before = weights(module)
    with pytest.raises(type(error)) as caught:
        fit(module, [(numbers(6, 3), Y)], exact(teacher))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert_close(weights(module), before, rtol=0, atol=0)


class Distances(nn.Module):
    """Torch knows no second derivative of ``cdist``."""

    def __init__(self):
        super().__init__()
        self.body, self.centers = mlp(), nn.Parameter(numbers(4, 2, seed=5))

    def forward(self, x):
        return torch.cdist(self.body(x), self.centers)[:, :2]


class Squared(torch.autograd.Function):
    """Written in the old way, which torch.func does not know."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return 2.0 * g * ctx.saved_tensors[0]


class Old(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return Squared.apply(self.body(x))


class Flash(nn.Module):
    """Insists on a kernel that has no second derivative."""

    def __init__(self):
        super().__init__()
        self.body = mlp(outputs=4)

    def forward(self, x):
        h = self.body(x)[:, None, None].expand(-1, -1, 3, -1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(h, h, h)[:, 0, 0, :2]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("make", "options", "note"),
    [
        (Distances, {}, "no second derivative"),
        (Flash, {}, "no second derivative"),
        (Old, {"engine": "func"}, "engine='tape'"),
    ],
    ids=["cdist", "flash", "old"],
)
def test_an_error_of_torch_keeps_its_type_and_gets_a_note(make, options, note, side):
    module = Step(make())
    before = weights(module)
    with pytest.raises(RuntimeError, match=note) as caught:
        fit(module, [(numbers(6, 3), Y)], exact(term={"side": side}, **options))
    assert type(caught.value) in (RuntimeError, NotImplementedError)
    assert note in "".join(caught.value.__notes__)
    assert_close(weights(module), before, rtol=0, atol=0)
