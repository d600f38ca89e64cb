"""Exceptions of the user's own pass through; torch's keep their type and get a note."""

import pytest
from torch import nn
from torch.testing import assert_close

from tests.kinds._by_hand import Y, Step, exact, fit, mlp, numbers, target, weights


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
