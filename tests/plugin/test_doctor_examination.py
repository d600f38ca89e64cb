"""The doctor's examination: it finds what is wrong and raises no false alarm."""

import logging

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import as_loader, fit, points, weights

VJP, JVP, CURVED = SobolevTerm(), SobolevTerm(side="tangent"), SobolevTerm(order=2)


def fits(net, shape=(4, 3), term=VJP, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(shape, dtype=torch.float64)
        net = net.double()
        teacher = mlp(dim=x[0].numel(), outputs=net(x)[0].numel(), seed=7)
        flat = nn.Sequential(nn.Flatten(), teacher, nn.Unflatten(1, net(x).shape[1:]))
        module = Regressor(net)
        spec = SobolevSpec(terms=[term])
        fit(module, as_loader([(x, net(x).detach())]), SobolevCallback(flat, spec, **options))
    return module


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


ORDINARY = {
    "relu mlp": (lambda: mlp(activation=nn.ReLU), (4, 3)),
    "deep tanh mlp": (lambda: nn.Sequential(mlp(3, 8), nn.Tanh(), mlp(8, 8), mlp(8, 2)), (4, 3)),
    "silu and softplus": (lambda: nn.Sequential(mlp(3, 4, activation=nn.SiLU), nn.Softplus(),
                                                nn.Linear(4, 2)), (4, 3)),
    "dropout": (lambda: nn.Sequential(mlp(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)), (4, 3)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), mlp(6, 2)), (4, 3)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.RMSNorm(6), mlp(6, 2)), (4, 3)),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(),
                                         nn.Flatten(), nn.Linear(16, 2)), (4, 2, 6)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), mlp(6, 2)), (4, 3)),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(
        nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)), (4, 3)),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(
        nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)), (4, 3)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.MaxPool2d(2),
                                           nn.Flatten(), nn.Linear(12, 2)), (4, 1, 6, 6)),
    "upsampling": (lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2, 2), nn.ELU(),
                                         nn.AvgPool2d(2), nn.Flatten()), (4, 1, 3, 3)),
    "gru": (lambda: Last(nn.GRU(3, 4, batch_first=True)), (3, 4, 3)),
    "lstm": (lambda: Last(nn.LSTM(3, 4, batch_first=True)), (3, 4, 3)),
    "attention": (Attention, (3, 4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("term", [VJP, JVP], ids=["cotangent", "tangent"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_students_pass(name, term):
    make, shape = ORDINARY[name]
    fits(make(), shape, term)


SMOOTH = ["deep tanh mlp", "silu and softplus", "dropout", "layer norm", "group norm", "batch norm",
          "spectral norm", "lstm", "attention"]  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_students_pass_at_order_2(name):
    make, shape = ORDINARY[name]
    fits(make(), shape, CURVED)


def test_a_fisher_projection_passes():
    spec = SobolevSpec(terms=[SobolevTerm(projection="fisher")], on="log_softmax")
    fit(Regressor(), points(), SobolevCallback(mlp(seed=7), spec))


class Detaches(nn.Module):
    """Loses half of its double backward."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 2.0 * x.detach() * gradient

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.Square.apply(self.body(x))


def test_a_wrong_double_backward_is_found_before_the_first_update():
    module = Regressor(Detaches())
    before = weights(module)
    with pytest.raises(ValueError, match=r"has a wrong double backward .* doctor=False trains"):
        fit(module, points(), SobolevCallback(mlp(seed=7)))
    assert_close(weights(module), before, rtol=0, atol=0)
    fit(module, points(), SobolevCallback(mlp(seed=7), doctor=False))
    assert (weights(module) - before).norm() > 0.0


def test_the_doctor_changes_nothing():
    outcomes = []
    for doctor in (True, False):
        torch.manual_seed(0)
        module = Regressor(nn.Sequential(mlp(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8).double(),
                                         mlp(8, 2)))  # fmt: skip
        fit(module, points(), SobolevCallback(mlp(seed=7), doctor=doctor))
        outcomes.append(module.state_dict())
    assert_close(outcomes[0], outcomes[1], rtol=0, atol=0)


class Counts(nn.Module):
    """Answers differently every time."""

    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x) * (1.0 + self.calls)


class Remembers(nn.Module):
    """Keeps a tensor that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        self.last = self.body(x)
        return self.last


class OwnPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp().float()

    def forward(self, x):
        self.body.float()
        return self.body(x.float())


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (Counts, "skipped: student is not deterministic"),
        (Remembers, "skipped: Only Tensors created explicitly by the user"),
        (OwnPrecision, "skipped: student computes in its own precision"),
    ],
)
def test_a_student_that_cannot_be_examined_is_said_to_be(net, text):
    with pytest.warns(UserWarning, match=f"Sobolev doctor: finite differences {text}"):
        fit(Regressor(net()), points(), SobolevCallback(mlp(seed=7)), limit_train_batches=1)


def test_what_was_chosen_and_found_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fits(Last(nn.GRU(3, 4, batch_first=True)), (3, 4, 3))
    said = "\n".join(record.message for record in caplog.records)
    assert "engine='tape', which reuses the step's own forward" in said
    assert "net.rnn (GRU): cuDNN is off" in said
    assert "agrees with finite differences to" in said
