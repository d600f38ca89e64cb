"""Lightning's own demonstration modules, unchanged but for their size."""

import math

import torch
from lightning.pytorch.demos.boring_classes import (
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    Net,
)
from lightning.pytorch.demos.lstm import LightningLSTM, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer

from tests.plugin._architectures import case, random
from tests.plugin._gradients import Case
from tests.plugin._students import Silent


def boring(kind):
    observed = lambda module, batch: [(module, batch)]  # noqa: E731
    return Case(kind(), random(4, 32), observed, lr=0.1, plain_loss=True)


class SGDDemo(DemoModel):
    """The demo with an optimizer whose step shows the gradient."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def demo():
    return Case(SGDDemo(), random(4, 32), lambda m, b: [(m, b)], plain_loss=True)


class SameMasks(Silent):
    """Draws the same dropout masks at every step."""

    def output(self, batch):
        return masked(self.net)(batch[0])


def masked(net):
    def call(x):
        torch.manual_seed(0)
        return net(x)

    return call


def demo_convolutions():
    def observed(module, batch):
        return [(masked(module.net), batch[0])]

    return case(SameMasks(Net()), 2, 1, 28, 28, observed=observed)


class SmallLSTM(LightningLSTM):
    def __init__(self):
        super().__init__(vocab_size=7)
        self.model = SimpleLSTM(vocab_size=7, ninp=3, nhid=3, nlayers=1, dropout=0.0)

    def prepare_data(self):
        """Nothing to fetch."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def demo_lstm():
    def observed(module, batch):
        hidden = tuple(h.double() for h in module.model.init_hidden(len(batch[0])))
        embedded = module.model.encoder(batch[0])
        return [(lambda x: module.model.rnn(x, hidden)[0], embedded)]

    tokens = torch.tensor([[1, 2, 3, 0], [6, 5, 5, 0]])
    options = {"module": "model.rnn"}
    return Case(SmallLSTM(), (tokens, tokens.flip(1)), observed, options, plain_loss=True)


class SmallTransformer(LightningTransformer):
    def __init__(self):
        super().__init__(vocab_size=7)
        self.model = Transformer(vocab_size=7, ninp=4, nhead=2, nhid=5, nlayers=1, dropout=0.0)

    def prepare_data(self):
        """Nothing to fetch."""


def demo_transformer():
    def observed(module, batch):
        model = module.model
        places = model.pos_encoder
        source, target = (places(model.embedding(t) * math.sqrt(model.ninp)) for t in batch)
        mask = model.generate_square_subsequent_mask(target.shape[1]).double()
        return [(lambda x: model.transformer(x, target, tgt_mask=mask), source)]

    tokens = torch.tensor([[1, 2, 3, 0], [6, 5, 5, 0], [4, 4, 1, 2]])
    options = {"module": "model.transformer"}
    return Case(
        SmallTransformer(), (tokens, tokens.flip(1)), observed, options, lr=0.1, plain_loss=True
    )


SMOOTH = {
    "lightning's lstm": demo_lstm,
    "lightning's transformer": demo_transformer,
}

PIECEWISE_LINEAR = {
    "lightning's boring model": lambda: boring(BoringModel),
    "lightning's manual boring model": lambda: boring(ManualOptimBoringModel),
    "lightning's demo model": demo,
    "lightning's convolutions with dropout": demo_convolutions,
}
