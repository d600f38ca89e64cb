"""Modules as people write them; none knows that it is observed."""

import copy

import torch
from torch import nn
from torch.func import functional_call

from tests.plugin._gradients import Case
from tests.plugin._students import Silent, SilentSelf, mlp


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _of_net(module, batch):
    return [(module.net, batch[0])]


def case(module, *shape, **changes):
    return Case(module, [random(*shape)], **{"observed": _of_net, **changes})


class Twice(Silent):
    """Calls its network on two halves of its input."""

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


class OnDict(nn.Module):
    """Takes the whole batch."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, batch):
        return {"scaled": batch["scale"], "y": batch["scale"][:, None] * self.body(batch["x"])}


class OnDictStep(Silent):
    def output(self, batch):
        return self.net(batch)["y"]


def dict_batch():
    def observed(module, batch):
        return [(lambda x: module.net({**batch, "x": x})["y"], batch["x"])]

    batch = {"index": torch.arange(4), "scale": random(4, seed=1), "x": random(4, 3)}
    return Case(OnDictStep(OnDict()), batch, observed, {"wrt": "x", "output": "y"})


def transformer_encoder():
    layer = nn.TransformerEncoderLayer(
        6, 2, dim_feedforward=8, dropout=0.0, activation="gelu", batch_first=True
    )
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return case(Silent(encoder), 3, 4, 6)


class Block(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = norm(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.second(torch.relu(self.norm(self.first(x))))


def resnet(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(), Block(4, norm), nn.ReLU(inplace=True), Block(4, norm),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def resnet_batch_norm():
    return case(Silent(resnet()), 4, 1, 7, 7)


def resnet_batch_norm_eval():
    net = resnet().double()
    batch = [random(4, 1, 7, 7)]
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


def instance_norm():
    return case(Silent(resnet(lambda c: nn.InstanceNorm2d(c, affine=True))), 3, 1, 7, 7)


def layer_norm():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    return case(Silent(net), 4, 4)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def lstm():
    return case(Silent(Recurrent()), 3, 5, 3)


class Tokens(nn.Module):
    """Integers in; the derivative is taken behind the embedding."""

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
    "calls self": lambda: case(SilentSelf(mlp(dim=3)), 4, 3),
    "calls self.net": lambda: case(Silent(mlp(dim=3)), 4, 3),
    "calls twice, the first counts": lambda: twice("first"),
    "calls twice, all count": lambda: twice("all"),
    "calls twice, the second counts": lambda: twice(1),
    "calls twice, the last counts": lambda: twice(-1),
    "dict batch": dict_batch,
    "layer norm": layer_norm,
    "transformer encoder": transformer_encoder,
    "resnet, coupled batch norm": resnet_batch_norm,
    "resnet, batch norm in eval": resnet_batch_norm_eval,
    "resnet, instance norm": instance_norm,
    "lstm": lstm,
    "embedding": embedding,
}
