"""Many projections in one backward pass are those of one after the other, for whatever layer."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from lightning_sobolev.functional import hessian, jacobian
from lightning_sobolev.functional.derivatives import FuncJet, TapeJet
from tests._reference import dense_hessian, dense_jacobian


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        q, k, v = self.inner(x).chunk(3, dim=-1)
        with sdpa_kernel(SDPBackend.MATH):
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(torch.cat([mixed, q, k], -1)).mean(1)


class Embedded(nn.Module):
    """Its input scales rows of a table."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(x @ self.table(torch.arange(4))))


STUDENTS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)), (5, 4)),
    "relu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (5, 4)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Conv2d(3, 1, 2), nn.Flatten()),
        (2, 2, 4, 4),
    ),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (5, 4)),
    "batch_norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
        ).eval(),
        (5, 4),
    ),
    "attention": (Attention, (2, 2, 4)),
    "embedding": (Embedded, (5, 4)),
}


def student(name, seed=0):
    torch.manual_seed(seed)
    make, shape = STUDENTS[name]
    net, x = make(), torch.randn(shape)
    if name == "batch_norm":
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2.0)
    return net, x


def recorded(net, x):
    leaf = x.clone().requires_grad_()
    return TapeJet(net(leaf), leaf)


def basis(like):
    size = like[0].numel()
    return torch.eye(size).reshape(size, 1, *like.shape[1:]).expand(size, *like.shape)


def gradients(net, rows):
    found = torch.autograd.grad(
        rows.sin().sum(), list(net.parameters()), retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(net.parameters(), found, strict=True)
    ]


def by_vmap(net, x):
    """The dense Jacobian [out, batch, *in], with a graph."""
    rows = torch.func.vmap(torch.func.jacrev(lambda row: net(row[None])[0]))(x)
    return rows.movedim(1, 0)


@pytest.mark.parametrize("make", [recorded, FuncJet], ids=["tape", "func"])
@pytest.mark.parametrize("name", STUDENTS)
def test_rows_taken_together_are_the_jacobian(name, make):
    net, x = student(name)
    jet = make(net, x)
    rows, expected = jet.vjp(basis(jet.value), at_once=2), by_vmap(net, x)
    assert_close(rows, expected)
    assert_close(gradients(net, rows), gradients(net, expected))


@pytest.mark.parametrize("make", [recorded, FuncJet], ids=["tape", "func"])
@pytest.mark.parametrize("name", sorted(set(STUDENTS) - {"norm"}))  # fused: see its note
def test_columns_taken_together_are_the_jacobian(name, make):
    net, x = student(name)
    columns = make(net, x).jvp(basis(x), at_once=3)
    out = by_vmap(net, x)  # [out, batch, *in]
    expected = out.flatten(2).permute(2, 1, 0)
    assert_close(columns.reshape(expected.shape), expected)
    assert_close(gradients(net, columns), gradients(net, expected))


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("name", ["mlp", "relu", "embedding", "attention"])
def test_products_taken_together_are_the_hessian(name, engine):
    net, x = student(name)
    found = hessian(net, x, engine=engine, at_once=5)
    twice = torch.func.hessian(lambda row: net(row[None])[0])
    expected = torch.func.vmap(twice)(x)
    assert_close(found, expected)
    assert_close(gradients(net, found), gradients(net, expected))


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_the_whole_jacobian_takes_several_at_once(engine):
    net, x = student("conv")
    assert_close(jacobian(net, x, engine=engine, at_once=16).detach(), dense_jacobian(net, x))


def test_pairs_are_taken_together_by_the_func_engine_alone():
    net, x = student("mlp")
    cotangents, tangents = torch.randn(4, 5, 3), torch.randn(4, 5, 4)
    expected = torch.einsum("bcde,pbc,pbe->pbd", dense_hessian(net, x), cotangents, tangents)
    assert_close(FuncJet(net, x).hvp(cotangents, tangents, at_once=3).detach(), expected)
    assert_close(recorded(net, x).hvp(cotangents, tangents).detach(), expected)
    with pytest.raises(ValueError, match=r"at_once must be 1 for pairs .* on the tape, got 3"):
        recorded(net, x).hvp(cotangents, tangents, at_once=3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_several_are_taken_at_once_too(mode):
    net, x = student("mlp")
    jet = recorded(net, x)
    with mode():
        rows = jet.vjp(basis(jet.value) + 0.0, at_once=2)
        columns = jet.jvp(basis(x) + 0.0, at_once=2)
    assert_close(rows.detach(), dense_jacobian(net, x).movedim(1, 0))
    assert_close(columns.detach(), dense_jacobian(net, x).permute(2, 0, 1))


def test_no_mask_is_drawn_again():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Tanh(), nn.Linear(30, 9))
    x = torch.randn(5, 4)
    jet = recorded(net, x)
    alone, before = jet.vjp(basis(jet.value)), torch.get_rng_state()
    assert_close(jet.vjp(basis(jet.value), at_once=4), alone)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_recurrent_layer_takes_several_on_the_tape():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(4, 3, batch_first=True), torch.randn(2, 5, 4)
    jet = recorded(lambda x: lstm(x)[0][:, -1], x)
    rows, alone = jet.vjp(basis(jet.value), at_once=2), jet.vjp(basis(jet.value))
    expected = dense_jacobian(lambda x: lstm(x)[0][:, -1], x)
    assert_close(rows.detach(), expected.movedim(1, 0))
    assert_close(gradients(lstm, rows), gradients(lstm, alone))


class Cube(torch.autograd.Function):
    """Its backward is a Function of the old style, which torch.func does not take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return Product.apply(grad, 3.0 * ctx.saved_tensors[0] ** 2)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * b, grad * a


def test_what_has_no_batching_rule_is_an_error_of_torch_and_runs_in_the_loop():
    x = torch.randn(5, 4)
    jet = recorded(Cube.apply, x)
    with pytest.raises(RuntimeError, match="vmap"):
        jet.vjp(basis(x), at_once=2)
    assert_close(jet.vjp(basis(x)).detach(), torch.diag_embed(3 * x**2).movedim(1, 0))


@pytest.mark.parametrize(("at_once", "passes"), [(1, 7), (3, 3), (7, 1), (100, 1)])
def test_as_many_as_asked_for_share_a_backward_pass(at_once, passes):
    passed, x = [], torch.randn(5, 7)
    leaf = x.clone().requires_grad_()
    y = leaf.sin()
    y.register_hook(passed.append)
    rows = TapeJet(y, leaf).vjp(basis(x), at_once=at_once)
    assert len(passed) == passes
    assert_close(rows.detach(), torch.diag_embed(x.cos()).movedim(1, 0))


def test_one_row_serves_all_tangents_of_an_expanded_cotangent():
    """Of a Hessian with all tangents the pulled-back row is recorded once."""
    pulled, x = [], torch.randn(5, 4)
    leaf = x.clone().requires_grad_()
    y = leaf.pow(3).sum(-1, keepdim=True)
    y.register_hook(pulled.append)
    rows = TapeJet(y, leaf).hvp(torch.ones(1, 5, 1).expand(4, 5, 1), basis(x))
    assert len(pulled) == 1
    assert_close(rows.detach(), torch.diag_embed(6 * x).movedim(1, 0))
