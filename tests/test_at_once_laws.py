"""Several projections at once: the numbers of a loop, whatever the student is made of."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from lightning_sobolev import SobolevLoss, SobolevTerm
from lightning_sobolev.loss import at_once
from tests._reference import dense_hessian, dense_jacobian

ALL = {"projection": "basis", "num_projections": None, "normalize": "none"}
TERMS = {
    "rows": {"num_projections": 9},
    "all rows": ALL,
    "columns": {"side": "tangent", "num_projections": 9},
    "all columns": {"side": "tangent", **ALL},
    "products": {"order": 2, "num_projections": 9},
    "all products": {"order": 2, **ALL},
}


class Checkpointed(nn.Module):
    def __init__(self, *layers, reentrant=False):
        super().__init__()
        self.inner, self.reentrant = nn.Sequential(*layers), reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


LAYERS = {
    "plain": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
    "norm": lambda: nn.LayerNorm(6),
    "checkpoint": lambda: Checkpointed(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh()),
}
# Nine projections, but for columns that forward mode has pushed and pairs on the tape.
MEASURED = {("rows", "tape"), ("rows", "func"), ("columns", "tape")}
MEASURED_PRODUCTS = {("products", "func"), ("all products", "tape"), ("all products", "func")}
INPUTS = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
CASES = [(layer, engine) for layer in LAYERS for engine in ("tape", "func")]
CASES.remove(("checkpoint", "func"))  # torch.func takes none in the loop either


def network(layer=nn.Identity, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    first, last = nn.Linear(3, 6), nn.Linear(6, 3)
    return nn.Sequential(first, nn.Tanh(), layer(), last, nn.Tanh()).to(dtype)


TEACHER = network(seed=9)


def evaluated(student, term, wish, precision=None, **where):
    """Return the loss, the gradient, and the random number that comes next."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(TEACHER)
    x = INPUTS.to(next(student.parameters()).dtype)
    loss_fn = SobolevLoss(teacher.to(x.dtype), SobolevTerm(**term), at_once=wish)
    torch.manual_seed(5)
    low = nullcontext() if precision is None else torch.autocast("cpu", dtype=torch.bfloat16)
    with low:
        with loss_fn.observe(student, **where):
            value = student(x).float().square().mean()
        loss = loss_fn().loss
    with loss_fn.remedies:
        (loss + value).backward()
    parts = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(parts), torch.rand(()), loss_fn


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("wish", [2, 100])
@pytest.mark.parametrize("name", ["all rows", "all columns", "all products"])
def test_the_term_is_that_of_the_dense_derivative(name, wish, engine):
    student, dense = network(), dense_hessian if "products" in name else dense_jacobian
    x = INPUTS.double()
    apart = (dense(student, x) - dense(TEACHER, x)).flatten(1)
    found = evaluated(student, TERMS[name], wish, engine=engine)[0]
    assert_close(found, apart.square().sum(1).mean().detach())


@pytest.mark.parametrize("rows", [1.0, 0.5])
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("layer", "engine"), CASES)
def test_loss_gradient_and_random_numbers_are_those_of_the_loop(layer, name, engine, rows):
    student, term = network(LAYERS[layer]), {**TERMS[name], "rows": rows}
    expected = evaluated(student, term, 1, engine=engine)[:3]
    assert_close(evaluated(student, term, 2, engine=engine)[:3], expected)
    *found, loss_fn = evaluated(student, term, None, engine=engine)
    assert_close(tuple(found), expected)
    assert ("order_1" in loss_fn.at_once.chosen) == ((name, engine) in MEASURED)
    assert ("order_2" in loss_fn.at_once.chosen) == ((name, engine) in MEASURED_PRODUCTS)


@pytest.mark.parametrize("name", TERMS)
def test_in_half_precision_the_float32_replay_is_taken_together(name):
    student = network(LAYERS["dropout"], dtype=torch.float32)
    expected = evaluated(student, TERMS[name], 1, precision="bf16")[:3]
    assert_close(evaluated(student, TERMS[name], 4, precision="bf16")[:3], expected)


def test_a_norm_in_the_steps_own_half_precision_is_left_to_the_loop():
    """It has no batching rule for a weight of another dtype."""
    student, term = network(LAYERS["norm"], dtype=torch.float32), {"num_projections": 9}
    options = {"precision": "bf16", "inner_precision": "step"}
    expected = evaluated(student, term, 1, **options)[:3]
    *found, loss_fn = evaluated(student, term, None, **options)
    assert loss_fn.at_once.chosen["order_1"] == 1
    assert_close(tuple(found), expected)


class InBackward(torch.autograd.Function):
    """The identity, with something of somebody's own in the backward pass."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return InBackward.apply(x, self.change)


def is_batched(grad):
    return torch._C._functorch.is_batchedtensor(grad)


def counted(grad):
    torch.bincount(torch.ones_like(grad).long().flatten())  # torch would run it in a loop
    return grad


CHANGES = {
    "numbers looked at": (lambda grad: grad * (1.0 if grad.sum() > 0 else 2.0), "vmap"),
    "numpy": (lambda grad: grad * float(grad.detach().numpy().size > 0), "data pointer"),
    "no batching rule": (counted, "performance drop"),
    "own random numbers": (lambda grad: grad * torch.rand_like(grad), "other numbers"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_backward_pass_that_is_no_batch_is_left_to_the_loop_and_that_is_said(change):
    function, text = CHANGES[change]
    student, term = network(lambda: Changed(function)), {"num_projections": 9}
    expected = evaluated(student, term, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        *found, loss_fn = evaluated(student, term, None)
    assert caught == []
    assert loss_fn.at_once.chosen["order_1"] == 1
    (news,) = [line for line in loss_fn.at_once.news if line.startswith("order_1 ")]
    assert text in news
    assert_close(tuple(found), expected[:3])


def test_an_error_that_is_not_of_vmap_is_not_swallowed():
    def broken(grad):
        return {False: grad}[is_batched(grad)]

    with pytest.raises(KeyError, match="True"):
        evaluated(network(lambda: Changed(broken)), {"num_projections": 9}, None)


def test_what_fails_in_a_later_step_is_not_blamed_on_the_number():
    failing = []

    def change(grad):
        if failing:
            raise RuntimeError("out of luck")
        return grad

    student = network(lambda: Changed(change))
    loss_fn = SobolevLoss(TEACHER, SobolevTerm(num_projections=9), at_once=4)
    for failing in ([], [True]):
        with loss_fn.observe(student):
            student(INPUTS.double())
        with pytest.raises(RuntimeError, match="out of luck") if failing else nullcontext():
            loss_fn()


@pytest.mark.parametrize("wish", [None, 1, 4])
def test_what_fails_in_the_loop_fails_with_the_loops_own_error(wish):
    student = network(lambda: Checkpointed(nn.Linear(6, 6), reentrant=True))
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        evaluated(student, {"num_projections": 9}, wish)


def test_a_reentrant_checkpoint_in_front_of_the_student_is_not_entered_by_the_measurement():
    front = Checkpointed(nn.Linear(3, 3), nn.Tanh(), reentrant=True).double()
    student, x = network(), INPUTS.double().requires_grad_()
    gradients = []
    for wish in (1, None):
        loss_fn = SobolevLoss(TEACHER, SobolevTerm(num_projections=9), at_once=wish)
        with loss_fn.observe(student):
            student(front(x))
        loss_fn().loss.backward()
        gradients.append(front.inner[0].weight.grad.clone())
        front.zero_grad()
    assert loss_fn.at_once.chosen["order_1"] in (1, at_once.AT_ONCE)
    assert_close(gradients[1], gradients[0])
