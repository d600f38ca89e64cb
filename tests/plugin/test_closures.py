"""Optimizers that evaluate a step several times: every evaluation is of one function."""

import lightning.pytorch as L
import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._loops import StepDraws
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, weights

TERMS = [
    SobolevTerm(num_projections=2),
    SobolevTerm(order=2, weight=0.3),
    SobolevTerm(order=1, name="some_rows", weight=0.2, rows=0.5),
]
SEARCH = {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"}


def callback(*terms, **options):
    return SobolevCallback(mlp(seed=7), SobolevSpec(terms=terms or TERMS), **options)


class Searching(Regressor):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), **SEARCH)


class Again(torch.optim.SGD):
    """Evaluates the closure three times at one point, as a line search of length zero would."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def step(self, closure=None):
        for _ in range(3):
            loss = closure()
            gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]
            self.seen.append((loss.detach().clone(), gradients))
        return super().step()


class Repeating(Regressor):
    def configure_optimizers(self):
        return Again(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_closure_called_again_at_the_same_parameters_gives_the_same_value(engine):
    module, used = Repeating(lr=0.005), callback(engine=engine)
    run = fit(module, points(), used, max_epochs=2)
    seen = run.optimizers[0].seen
    for first, *others in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        for other in others:
            assert_close(other, first, rtol=0, atol=0)
    assert used.state_dict()["counter"] == 6  # one a step, however many evaluations
    assert {s["count"] for s in used.state_dict()["scales"].values()} == {6}


@pytest.mark.parametrize("kind", ["jacobian", "hessian"])
def test_line_search_equals_a_loop_written_by_hand(kind):
    """Random directions: the loop draws once a step, and differentiates densely."""
    term = SobolevTerm(order=1 if kind == "jacobian" else 2, normalize="none", weight=0.5)
    module = Searching()
    fit(module, points(), callback(term), max_epochs=2)
    net, teacher = mlp(), mlp(seed=7)
    optimizer = torch.optim.LBFGS(net.parameters(), **SEARCH)
    for number, (x, y) in enumerate([*points(), *points()]):
        draws = StepDraws(0, 0, number)
        u, v = draws.cotangents(0, term, y)[0], draws.tangents(0, term, x)[0]

        def closure(x=x, y=y, u=u, v=v):
            optimizer.zero_grad()
            difference = dense(net, kind, x, u, v) - dense(teacher, kind, x, u, v).detach()
            loss = mse_loss(net(x), y) + 0.5 * difference.square().sum(-1).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_close(weights(module), weights(net), rtol=1e-8, atol=1e-8)


def dense(model, kind, x, u, v):
    if kind == "jacobian":
        return torch.einsum("bo,boi->bi", u, torch.func.vmap(torch.func.jacrev(model))(x))
    second = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(model)))(x)
    return torch.einsum("bo,boij,bj->bi", u, second, v)


def test_the_log_holds_one_number_a_step_beside_the_modules_own():
    class Logging(Searching):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss)
            return loss

    class Watch(L.Callback):
        def __init__(self):
            self.rows = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found = {key: float(value) for key, value in trainer.callback_metrics.items()}
            self.rows.append((float(outputs["loss"]), found))

    watch = Watch()
    term = SobolevTerm(weight=1.0)
    fit(Logging(), points(), callback(term), watch, max_epochs=2, log_every_n_steps=1)
    assert len(watch.rows) == 6
    for whole, found in watch.rows:  # value and term are those of one evaluation
        total = found["train/loss"] + found["train/sobolev/total"]
        assert_close(total, whole, rtol=1e-12, atol=0)


def test_manual_optimization_with_lbfgs_is_refused():
    class Manual(ManualRegressor):
        configure_optimizers = Searching.configure_optimizers

    with pytest.raises(ValueError, match=r"automatic_optimization must be True with .*LBFGS"):
        fit(Manual(), points(), callback())


def test_a_trial_that_is_not_finite_says_which_evaluation_it_was():
    class Far(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(1e200)
            return closure()

    class TooFar(Regressor):
        def configure_optimizers(self):
            return Far(self.parameters(), lr=1.0)

    expected = (
        r"at step 0: (.|\n)*evaluation 2 of the optimizer's closure \(a line search that went"
    )
    with pytest.raises(FloatingPointError, match=expected):
        fit(
            TooFar(mlp(activation=torch.nn.Softplus)),
            points(),
            callback(SobolevTerm(normalize="none")),
        )


def test_an_exception_in_a_later_evaluation_takes_the_step_back():
    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            closure()
            raise RuntimeError("a broken line search")

    class Broken(Regressor):
        def configure_optimizers(self):
            return Breaking(self.parameters(), lr=1.0)

    used = callback()
    with pytest.raises(RuntimeError, match="a broken line search"):
        fit(Broken(), points(), used)
    assert used.state_dict() == {"counter": 0, "scales": {}, "balance": {}, "at_once": {}}
