"""Modules as people write them; none knows that it is observed."""

import copy

import torch
from torch import nn
from torch.func import functional_call

from tests.plugin._gradients import Case
from tests.plugin._ordinary import ORDINARY
from tests.plugin._students import Silent, mlp


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(module, *shape, **changes):
    observed = {"observed": lambda module, batch: [(module.net, batch[0])]}
    return Case(module, [random(*shape)], **observed | changes)


class Twice(Silent):
    def halves(self, batch):
        return batch[0][:, :3], batch[0][:, 3:]

    def output(self, batch):
        first, second = self.halves(batch)
        return self.net(first) + self.net(second).square()


def twice(call):
    def observed(module, batch):
        calls = [(module.net, half) for half in module.halves(batch)]
        return calls if call == "all" else [calls[0 if call == "first" else call]]

    return case(Twice(), 4, 6, observed=observed, options={"call": call})


def batch_norm_in_eval():
    net, batch = ORDINARY["batch norm"][0]().double(), [random(4, 3)]
    # the step's own forward in train mode comes first and moves the running statistics
    moved = copy.deepcopy(net)
    moved(batch[0])
    statistics = dict(moved.named_buffers())

    def observed(module, batch):
        def evaluate(x):
            module.net.eval()
            y = functional_call(module.net, statistics, (x,))
            module.net.train()
            return y

        return [(evaluate, batch[0])]

    return Case(Silent(net), batch, observed, {"batch_norm": "eval"})


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 3)
        self.encoder = mlp()

    def forward(self, tokens):
        return self.encoder(self.embedding(tokens).tanh())


def embedding():
    def observed(module, batch):
        return [(module.net.encoder, module.net.embedding(batch[0]).tanh())]

    batch = [torch.tensor([1, 4, 4, 10])]
    return Case(Silent(Tokens()), batch, observed, {"module": "net.encoder"})


CASES = {
    "calls twice, the first counts": lambda: twice("first"),
    "calls twice, all count": lambda: twice("all"),
    "calls twice, the last counts": lambda: twice(-1),
    "batch norm in eval": batch_norm_in_eval,
    "embedding": embedding,
}
