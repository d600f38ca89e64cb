import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import Balanced, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.loss.balance import RunningBalance
from lightning_sobolev.plugin import resolve
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, weights

EXACT = {"projection": "basis", "num_projections": None, "normalize": "none"}


def norm(loss, net):
    found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None]).norm()


def losses(net, teacher, x, y):
    def jacobian(f):
        return torch.func.vmap(torch.func.jacrev(lambda row: f(row[None])[0]))(x)

    difference = jacobian(net) - jacobian(teacher)
    return mse_loss(net(x), y), difference.square().sum((1, 2)).mean()


@pytest.mark.parametrize("student", [Regressor, ManualRegressor])
def test_the_weighted_gradient_is_ratio_times_as_long_as_that_of_the_values(student):
    data, teacher, net = points(batch_size=24), mlp(seed=7), mlp()
    value, derivative = losses(net, teacher, *next(iter(data)))
    weight = float(2.5 * norm(value, net) / norm(derivative, net))
    balanced = SobolevTerm(weight=Balanced(ratio=2.5), **EXACT)
    fixed = SobolevTerm(weight=weight, **EXACT)
    ends = []
    for term in (balanced, fixed):
        module = student(mlp())
        own = SobolevCallback(teacher, SobolevSpec(terms=[term]))
        used = fit(module, data, own)
        ends.append(weights(module))
    assert_close(ends[0], ends[1])
    assert "train/sobolev/order_1_weight" not in used.callback_metrics


def test_the_weight_is_logged():
    own = SobolevCallback(mlp(seed=7), SobolevSpec(terms=[SobolevTerm(weight=Balanced())]))
    used = fit(Regressor(), points(), own)
    (state,) = own.state_dict()["balance"].values()
    assert 0.0 < float(used.callback_metrics["train/sobolev/order_1_weight"]) < 1e6
    assert state > 0.0


def test_measurements_are_averaged_and_made_when_due():
    w = torch.ones((), requires_grad=True)
    term = SobolevTerm(weight=Balanced(every_n_steps=2, memory=0.75), normalize="none")
    balance, seen = RunningBalance(), []
    for step in range(4):
        slope = 3.0 + step
        found = balance.weights({term.key: w}, [term], step, slope * w, lambda: [w])
        seen.append(found[term.key])
    assert seen == pytest.approx([3.0, 3.0, 3.5, 3.5])


def test_a_term_without_gradient_leaves_the_weight_alone():
    w = torch.ones((), requires_grad=True)
    term, balance = SobolevTerm(weight=Balanced(0.5)), RunningBalance()
    found = balance.weights({term.key: 0.0 * w}, [term], 0, w, lambda: [w])
    assert found == {"order_1": 0.5}
    assert balance.state == {}


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"every_n_steps": 0}, {"memory": 1.0}])
def test_what_balances_nothing_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {wrong[name]}"):
        Balanced(**wrong)


class SearchesLines(Regressor):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=2)


def compiled():
    module = Regressor()
    module.net = torch.compile(module.net, backend="aot_eager")
    return module


def sharded(monkeypatch):
    monkeypatch.setattr(resolve, "sharded_parts", lambda module: [module])
    return Regressor()


@pytest.mark.parametrize(
    ("student", "text"),
    [
        (sharded, "parameters are sharded over processes"),
        (lambda _: compiled(), "the student is compiled"),
        (lambda _: SearchesLines(), "the optimizer searches along lines"),
    ],
)
def test_what_cannot_be_balanced_is_refused(student, text, monkeypatch):
    spec = SobolevSpec(terms=[SobolevTerm(), SobolevTerm(name="b", weight=Balanced())])
    with pytest.raises(ValueError, match=f"weight of b must be a number or a schedule .* {text}"):
        fit(student(monkeypatch), points(), SobolevCallback(mlp(seed=7), spec))
