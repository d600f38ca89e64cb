"""Under manual optimization the term enters through manual_backward, once."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from tests.plugin._loops import by_hand, taught
from tests.plugin._students import ManualRegressor, Regressor, Silent, callback, mlp
from tests.plugin._trainers import fit, points, weights


class Adversaries(Regressor):
    """A generator and a critic with one backward call each, in either order."""

    def __init__(self, critic_first=False):
        super().__init__()
        self.critic = mlp(dim=2, outputs=1, seed=5)
        self.critic_first = critic_first
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.critic)]

    def training_step(self, batch, batch_idx):
        x, y = batch
        fake = self.net(x)
        if self.critic_first:
            self.train_critic(fake, y)
            self.train_generator(fake)
        else:
            self.train_generator(fake)
            self.train_critic(fake, y)

    def train_generator(self, fake):
        optimizer = self.optimizers()[0]
        self.toggle_optimizer(optimizer)
        self.manual_backward(-self.critic(fake).mean())
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

    def train_critic(self, fake, y):
        optimizer = self.optimizers()[1]
        self.toggle_optimizer(optimizer)
        self.manual_backward(self.critic(fake.detach()).mean() - self.critic(y).mean())
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)


def parts(module):
    return weights(module.net), weights(module.critic)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("critic_first", [False, True])
def test_the_term_enters_the_loss_that_reaches_the_student_and_no_other(critic_first, engine):
    one_batch = {"limit_train_batches": 1}
    plain, taught = Adversaries(critic_first), Adversaries(critic_first)
    start, _ = parts(plain)
    fit(plain, points(), **one_batch)
    used = callback(module="net", engine=engine)
    fit(taught, points(), used, **one_batch)
    alone = Silent(lr=0.1)
    fit(alone, points(), callback(module="net"), **one_batch)
    assert (weights(alone) - start).norm() > 0.01
    assert_close(parts(taught)[1], parts(plain)[1], rtol=0, atol=0)
    assert_close(parts(taught)[0] - parts(plain)[0], weights(alone) - start)
    assert used.state_dict()["scales"]["order_1"]["count"] == 1


class Twice(ManualRegressor):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = mse_loss(self(batch[0]), batch[1])
        self.manual_backward(0.5 * loss, retain_graph=True)
        self.manual_backward(0.5 * loss)
        optimizer.step()


def test_two_backward_calls_of_one_loss_add_the_term_once():
    assert_close(taught(Twice()), by_hand())


class CriticAlone(Adversaries):
    def training_step(self, batch, batch_idx):
        self.train_critic(self.net(batch[0]), batch[1])


def test_a_term_that_no_loss_reaches_is_refused():
    with pytest.raises(ValueError, match=r"the term enters through self.manual_backward"):
        fit(CriticAlone(), points(), callback(module="net"))
