"""One callback in several fits: what is set in between counts, what was running starts anew."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import AnalyticTeacher, SobolevSpec, SobolevTerm
from tests.kinds._by_hand import (
    EXACT,
    RANDOM,
    SIDES,
    Overheard,
    Step,
    X,
    Y,
    along,
    assert_all_differ,
    assert_is,
    descend,
    exact,
    fit,
    frobenius,
    jacobian,
    mlp,
    share,
    slope,
    target,
    weights,
)


def other(x):
    return 5.0 * target(2.0 * x)


def large(x):
    return 1000.0 * target(x)


@pytest.mark.parametrize("doctor", [False, True])
def test_a_teacher_that_is_set_between_two_fits_teaches_the_second(doctor):
    callback = exact(doctor=doctor)
    fit(Step(), [(X, Y)], callback)
    callback.teacher = AnalyticTeacher(other)
    net = mlp()
    assert_is(share(Step, [(X, Y)], callback), slope(frobenius(net, other, X), net))


def test_a_network_that_is_set_as_teacher_is_one():
    callback = exact()
    fit(Step(), [(X, Y)], callback)
    callback.teacher = mlp(seed=7)
    net = mlp()
    assert_is(share(Step, [(X, Y)], callback), slope(frobenius(net, mlp(seed=7), X), net))


@pytest.mark.parametrize("side", SIDES)
def test_a_spec_that_is_set_between_two_fits_is_matched_in_the_second(side):
    callback = exact()
    fit(Step(), [(X, Y)], callback)
    callback.spec = SobolevSpec(
        terms=[SobolevTerm(**EXACT, side=side, weight=7.0, name="again")], on=torch.square
    )
    net = mlp()
    ours, theirs = (lambda x: net(x).square()), (lambda x: target(x).square())
    found = share(Step, [(X, Y)], callback)
    assert_is(found, slope(7.0 * frobenius(ours, theirs, X), net))


def test_a_second_fit_does_not_draw_the_directions_of_the_first():
    teacher = Overheard()
    callback, net = exact(teacher, term={**RANDOM, "weight": 0.1}), mlp()
    fit(Step(), [(X, Y)] * 2, callback)
    module = Step()
    fit(module, [(X, Y)] * 2, callback)
    assert_all_differ(teacher.along)
    losses = [
        lambda u=u: mse_loss(net(X), Y) + 0.1 * along(u, "cotangent", net, X)
        for u in teacher.along[2:]
    ]
    assert_close(weights(module), descend(net, *losses), rtol=1e-9, atol=1e-11)


def size(f):
    return jacobian(f, X).square().flatten(1).sum(1).mean()


def relative(net, *teachers):
    """Return value loss and term of the last teacher, divided by the running mean of all."""
    scale = torch.stack([size(teacher) for teacher in teachers]).mean()
    return mse_loss(net(X), Y) + 0.1 * frobenius(net, teachers[-1], X) / scale


RUNNING = {"normalize": "target", "weight": 0.1}


def test_running_scales_begin_anew_in_each_fit():
    callback, net, module = exact(large, term=RUNNING), mlp(), Step()
    fit(Step(), [(X, Y)] * 3, callback)
    callback.teacher = AnalyticTeacher(target)
    fit(module, [(X, Y)], callback)
    moved = descend(net, lambda: relative(net, target))
    assert_close(weights(module), moved, rtol=1e-10, atol=1e-12)


def taught_by_large(folder):
    """Train one epoch, whose end is stored."""
    fit(Step(), [(X, Y)], exact(large, term=RUNNING), stored(folder), enable_checkpointing=True)
    return folder / "last.ckpt"


def stored(folder):
    return ModelCheckpoint(folder, save_last=True)


def test_a_fit_that_broke_leaves_nothing_to_the_next():
    class Breaks(Step):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 1:
                raise KeyError("a fault of the step itself")
            return loss

    callback, net, module, broken = exact(large, term=RUNNING), mlp(), Step(), Breaks()
    with pytest.raises(KeyError, match="a fault"):
        fit(broken, [(X, Y)] * 2, callback)
    assert set(vars(broken.net)) == set(vars(mlp()))
    callback.teacher = AnalyticTeacher(target)
    fit(module, [(X, Y)], callback)
    moved = descend(net, lambda: relative(net, target))
    assert_close(weights(module), moved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fits_before", [0, 2])
def test_running_scales_go_on_where_a_checkpoint_is_loaded(fits_before, tmp_path):
    path, callback = taught_by_large(tmp_path), exact(target, term=RUNNING)
    for _ in range(fits_before):
        fit(Step(), [(X, Y)] * 2, callback)
    module, net = Step(), mlp()
    fit(module, [(X, Y)], callback, stored(tmp_path), max_epochs=2, ckpt_path=path,
        enable_checkpointing=True)  # fmt: skip
    steps = [lambda: relative(net, large), lambda: relative(net, large, target)]
    assert_close(weights(module), descend(net, *steps), rtol=1e-10, atol=1e-12)
