"""Layers whose kernels have no second derivative: right wherever they are run, and only there."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lightning_sobolev.plugin import step
from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    by_rows,
    distance,
    exact,
    fit,
    jacobian,
    mlp,
    share,
    slope,
    target,
)


class Attention(nn.Module):
    """Each row is a sequence of three; ``plain`` writes the kernel out."""

    def __init__(self, plain=False):
        super().__init__()
        self.plain, self.mix = plain, nn.Linear(4, 12)

    def forward(self, h):
        tokens = h[:, None] + torch.arange(3).to(h)[:, None]
        q, k, v = self.mix(tokens).chunk(3, -1)
        if self.plain:
            return ((q @ k.mT / 2.0).softmax(-1) @ v).sum(1)
        return scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].sum(1)


class LayerNorm(nn.Module):
    def __init__(self, plain=False):
        super().__init__()
        self.plain, self.norm = plain, nn.LayerNorm(4)

    def forward(self, h):
        if not self.plain:
            return self.norm(h)
        centered = h - h.mean(-1, keepdim=True)
        scale = (centered.square().mean(-1, keepdim=True) + self.norm.eps).rsqrt()
        return centered * scale * self.norm.weight + self.norm.bias


class Whole(nn.Module):
    """A layer between two others, recomputed in the backward pass or not."""

    def __init__(self, layer, how="not", plain=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.inner, self.layer = nn.Linear(3, 4), layer(plain)
            self.outer = nn.Linear(4, 2)
        self.how = how
        self.double()

    def part(self, h):
        return torch.tanh(self.layer(h))

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        if self.how == "not":
            return self.outer(self.part(h))
        if self.how == "twice":
            return self.outer(checkpoint(lambda z: self.deeper(z), h, use_reentrant=False))
        return self.outer(checkpoint(self.part, h, use_reentrant=False))

    def deeper(self, h):
        return checkpoint(self.part, h, use_reentrant=False)


def expected(layer):
    net = Whole(layer, plain=True)
    return slope(distance(by_rows(net, X), jacobian(target, X)), net)


@pytest.mark.parametrize(("side", "doctor"), [("cotangent", True), ("tangent", False)])
@pytest.mark.parametrize("how", ["not", "part", "twice"])
@pytest.mark.parametrize("layer", [Attention, LayerNorm])
def test_a_recomputed_layer_is_right(layer, how, side, doctor):
    callback = exact(term={"side": side}, doctor=doctor)
    assert_is(share(lambda: Step(Whole(layer, how)), [(X, Y)], callback), expected(layer))


class Manual(Step):
    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(mse_loss(self.net(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("layer", [Attention, LayerNorm])
def test_a_recomputed_layer_is_right_in_manual_optimization(layer, side):
    callback = exact(term={"side": side})
    assert_is(share(lambda: Manual(Whole(layer, "part")), [(X, Y)], callback), expected(layer))


class Elsewhere(Step):
    """Reentrant checkpointing, which plain training knows, in a branch of its own."""

    def __init__(self, net=None):
        super().__init__(net)
        self.other = mlp(seed=4)

    def training_step(self, batch, batch_idx):
        hidden = self.other[:2](batch[0])
        branch = checkpoint(self.other[2], hidden, use_reentrant=True)
        return super().training_step(batch, batch_idx) + branch.square().mean()


@pytest.mark.parametrize("is_large", [False, True])  # torch refuses it with inputs=
@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("side", SIDES)
def test_reentrant_checkpointing_elsewhere_in_the_step_works(side, flags, is_large, monkeypatch):
    monkeypatch.setattr(step, "LARGE", 0 if is_large else step.LARGE)
    batches = [(X, Y)] * flags.get("accumulate_grad_batches", 1)
    found = share(Elsewhere, batches, exact(module="net", term={"side": side}), **flags)
    net = Elsewhere()
    assert_is(found, slope(distance(jacobian(net.net, X), jacobian(target, X)), net))


def flags():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
        cudnn.enabled,
    )  # fmt: skip


class Encoder(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.inner, self.attention, self.seen = nn.Linear(3, 4).double(), Attention(), seen
        self.double().requires_grad_(False)

    def forward(self, x):
        self.seen.append(flags())
        return self.attention(self.inner(x))


class Encoded(Step):
    """A frozen encoder before the student, and one more call of it behind."""

    def __init__(self, seen):
        super().__init__(mlp(inputs=4))
        self.encoder = Encoder(seen)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            h = self.encoder(batch[0])
        loss = mse_loss(self.net(h), batch[1])
        with torch.no_grad():
            return loss + 0.1 * self.encoder(batch[0] + 1.0).square().mean()


@pytest.mark.parametrize("side", SIDES)
def test_attention_outside_of_the_student_keeps_its_fast_kernel(side):
    seen, before = [], flags()
    fit(Encoded(seen), [(X, Y)] * 2, exact(module="net", term={"side": side}, doctor=True))
    assert set(seen) == {before}
    assert flags() == before
