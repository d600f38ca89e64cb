"""Steps under manual optimization: what loss is handed to which backward call."""

import torch
from torch.nn.functional import mse_loss

from tests.kinds._measure import Step


class Manual(Step):
    """One pass; a kind of step overrides ``passes``."""

    lr = 1.0

    def __init__(self, net=None):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.passes(*batch)
        optimizer.step()

    def loss(self, x, y):
        return mse_loss(self.net(x), y)

    def passes(self, x, y):
        self.manual_backward(self.loss(x, y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class MicroBatches(Manual):
    count = 3

    def passes(self, x, y):
        for part in zip(x.chunk(self.count), y.chunk(self.count), strict=True):
            self.manual_backward(self.loss(*part))


class Averaged(MicroBatches):
    """Accumulates by hand, as is usual: each loss is divided by their number."""

    def passes(self, x, y):
        for part in zip(x.chunk(self.count), y.chunk(self.count), strict=True):
            self.manual_backward(self.loss(*part) / self.count)


class OneByOne(Manual):
    """Two passes; the second call is made behind the first backward."""

    def passes(self, x, y):
        self.manual_backward(self.loss(x, y))
        self.manual_backward(self.loss(3.0 * x, y))


class CallsFirst(Manual):
    """Two calls, and then a backward for each."""

    def passes(self, x, y):
        losses = self.loss(x, y), self.loss(3.0 * x, y)
        for loss in losses:
            self.manual_backward(loss)


class LastFirst(Manual):
    def passes(self, x, y):
        losses = self.loss(x, y), self.loss(3.0 * x, y)
        for loss in reversed(losses):
            self.manual_backward(loss)


class Together(Manual):
    """Two calls that one backward reaches."""

    def passes(self, x, y):
        self.manual_backward(self.loss(x, y) + self.loss(3.0 * x, y))


class Halves(Manual):
    """Two backward calls through one graph."""

    def passes(self, x, y):
        loss = self.loss(x, y)
        self.manual_backward(0.5 * loss, retain_graph=True)
        self.manual_backward(0.5 * loss)


class Heads(Manual):
    """Three losses of one output, each with a backward of its own."""

    def passes(self, x, y):
        output = self.net(x)
        for power in (1, 2, 3):
            loss = (output - y).abs().pow(power).mean()
            self.manual_backward(loss, retain_graph=power < 3)


class Adversarial(Manual):
    """The first call is a critic's, which looks at it detached; the second one is trained."""

    def __init__(self, net=None):
        super().__init__(net)
        self.critic = torch.nn.Linear(2, 1).double()
        torch.nn.init.constant_(self.critic.weight, 0.3)
        torch.nn.init.constant_(self.critic.bias, 0.1)

    def passes(self, x, y):
        fake = self.net(x).detach()
        self.manual_backward(self.critic(fake).mean() - self.critic(y).mean())
        self.manual_backward(-self.critic(self.net(3.0 * x)).mean())


class InClosure(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = self.loss(*batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)


class Unseen(Manual):
    """Calls backward on the tensor, which nobody else can see."""

    def passes(self, x, y):
        self.loss(x, y).backward()


class Updates(Manual):
    """Three updates in one step, as an inner loop makes them."""

    lr = 0.1

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(3):
            optimizer.zero_grad()
            self.manual_backward(self.loss(*batch))
            optimizer.step()


class Sharpness(Manual):
    """SAM by hand: the update is the gradient at weights a little uphill."""

    radius = 0.1

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(*batch))
        uphill = [self.radius * p.grad for p in self.parameters()]
        self.shift(uphill, 1.0)
        optimizer.zero_grad()
        self.manual_backward(self.loss(*batch))
        self.shift(uphill, -1.0)
        optimizer.step()

    @torch.no_grad()
    def shift(self, directions, sign):
        for parameter, direction in zip(self.parameters(), directions, strict=True):
            parameter.add_(direction, alpha=sign)
