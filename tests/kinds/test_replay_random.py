"""A replay draws what the observed call drew, and the generators stand where they stood."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout, mse_loss
from torch.testing import assert_close

from tests.kinds._measure import MAIN, WAYS, Spy, Step, assert_taught, batch, moved, seeded, sobolev

ALL_ROWS = {
    name: way for name, way in {**MAIN, "all rows": WAYS["all rows"]}.items() if way.rows > 0.5
}
SEED = 11


class Dropped(Step):
    """Seeds what its dropout draws, so that the reference knows the mask."""

    def __init__(self):
        super().__init__(seeded(self.net_of))

    @staticmethod
    def net_of():
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))

    def call(self, x):
        torch.manual_seed(SEED)
        return self.net(x)


def mask(*shape):
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return dropout(torch.ones(*shape).double(), 0.5)


def masked(module, x, mask):
    first, _, activation, last = module.net
    return last(activation(first(x) * mask))


@pytest.mark.parametrize("way", ALL_ROWS.values(), ids=ALL_ROWS)
def test_dropout_has_the_masks_of_the_observed_call(way):
    drawn = mask(6, 8)
    assert drawn.unique().tolist() == [0.0, 2.0]
    assert_taught(Dropped, way, masked, extra=[drawn])


class Keeps(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        self.state = torch.get_rng_state()


class Unseeded(Dropped):
    def call(self, x):
        return self.net(x)


class DrawsLater(Unseeded):
    """Draws after the call, too: a replay must not put the generator back to the call."""

    def training_step(self, batch, batch_idx):
        y = self.net(batch[0])
        return mse_loss(y + torch.randn_like(y), batch[1])


@pytest.mark.parametrize("way", MAIN.values(), ids=MAIN)
@pytest.mark.parametrize("make", [Unseeded, DrawsLater])
def test_the_generator_stands_where_a_run_without_the_term_leaves_it(make, way):
    states = []
    for callbacks in ([], [sobolev(way, Spy())]):
        keeps = Keeps()
        moved(make, batch, *callbacks, keeps, precision=way.precision)
        states.append(keeps.state)
    assert_close(states[0], states[1], rtol=0, atol=0)


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x, noise):
        return self.body(x + noise)


class Noisy(Step):
    def __init__(self):
        super().__init__(seeded(Noise))

    def call(self, x):
        torch.manual_seed(SEED)
        return self.net(x, torch.rand(*x.shape, dtype=torch.float64).to(x))


def noise():
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return torch.rand(6, 3, dtype=torch.float64)


@pytest.mark.parametrize("way", MAIN.values(), ids=MAIN)
def test_noise_that_the_step_drew_is_an_argument_like_others(way):
    assert_taught(Noisy, way, extra=[noise()])
