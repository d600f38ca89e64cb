"""The code of docs/api.md runs, and does what the page says."""

import re
from pathlib import Path

import torch
from torch.autograd import grad
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from lightning_sobolev import SobolevLoss, SobolevTerm

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
LOSS, SURGERY, TEACHER = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
X, Y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(1, -1, 8).reshape(4, 2)


def mlp(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        ).double()


def run(block, **names):
    names |= {
        "SobolevLoss": SobolevLoss, "SobolevTerm": SobolevTerm, "mse_loss": mse_loss,
        "grad": grad, "parameters_to_vector": parameters_to_vector,
        "net": mlp(0), "x": X.double(), "y": Y.double(),
    }  # fmt: skip
    exec(compile(block, str(PAGE), "exec"), names)
    return names


def gradient(net):
    return parameters_to_vector([p.grad for p in net.parameters()])


def test_three_lines_train_on_value_and_term():
    names = run(LOSS, teacher=mlp(1))
    plain = mlp(0)
    mse_loss(plain(X.double()), Y.double()).backward()
    assert float((gradient(names["net"]) - gradient(plain)).norm()) > 1e-3


def test_surgery_of_losses_that_agree_is_their_sum():
    term = SobolevTerm(weight=0.1, projection="basis", num_projections=None)
    names = run(SURGERY, loss_fn=SobolevLoss(mlp(1), term))
    net = mlp(0)
    half = mse_loss(net(X.double()), Y.double()) / 2
    found = names["surgery"]([half, half], list(net.parameters()))
    (2 * half).backward()
    assert_close(found, gradient(net))
    assert names["gradient"].shape == found.shape


def test_surgery_leaves_no_conflict_of_two():
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    losses = [weight[0], weight[1] - weight[0]]
    projected = run(SURGERY, loss_fn=SobolevLoss(mlp(1)))["surgery"](losses, [weight])
    # (1, 0) becomes (1, 1) / 2 and (-1, 1) becomes (0, 1).
    assert_close(projected, torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_an_average_of_networks_teaches_what_its_mean_function_does():
    parts = [mlp(1), mlp(2)]
    exact = SobolevTerm(projection="basis", num_projections=None, normalize="none")

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, x):
            return sum(part(x) for part in self.parts) / 2

    found = []
    for teacher in (run(TEACHER)["Averaged"](parts), Mean()):
        loss_fn, net = SobolevLoss(teacher, exact), mlp(0)
        with loss_fn.observe(net):
            net(X.double())
        found.append(float(loss_fn()))
    assert_close(found[0], found[1], rtol=1e-12, atol=0)
