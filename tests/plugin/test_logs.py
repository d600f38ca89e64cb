"""Weights over time, what a weight of zero costs, and what is logged."""

import lightning.pytorch as L
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    Linear,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    Step,
)
from lightning_sobolev._types import Teacher
from lightning_sobolev.plugin import step as step_log
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import Learns, Regressor, mlp
from tests.plugin._trainers import as_loader, fit, points, weights


class Log(L.Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        logged = trainer.callback_metrics
        self.steps.append({k: v.clone() for k, v in logged.items() if "sobolev" in k})

    def of(self, key):
        return [float(step[f"train/sobolev/{key}"]) for step in self.steps]


class CountsCalls(Teacher):
    def __init__(self):
        self.teacher, self.calls = AnalyticTeacher(mlp(seed=7)), 0

    def at(self, query):
        self.calls += 1
        return self.teacher.at(query)


def test_terms_and_their_weighted_sum_are_logged():
    terms = [
        SobolevTerm(weight=0.5),
        SobolevTerm(order=2, weight=0.25, name="curvature"),
        SobolevTerm(order=0, weight=2.0),
    ]
    log = Log()
    fit(Regressor(), points(), SobolevCallback(mlp(seed=7), SobolevSpec(terms=terms)), log)
    keys = {f"train/sobolev/{name}" for name in ("order_1", "curvature", "order_0", "total")}
    assert all(set(step) == keys for step in log.steps)
    for step in log.steps:
        values = [step[f"train/sobolev/{term.key}"] for term in terms]
        total = sum(t.weight * v for t, v in zip(terms, values, strict=True))
        assert_close(step["train/sobolev/total"], total, check_dtype=False)


def test_the_weight_follows_its_schedule_over_the_global_step():
    schedule = Linear(1.0, 0.0, steps=4)
    log = Log()
    spec = SobolevSpec(terms=[SobolevTerm(weight=schedule)])
    fit(Regressor(), points(size=40), SobolevCallback(mlp(seed=7), spec), log)
    for number, step in enumerate(log.steps[:4]):
        weight = 1.0 - number / 4
        assert_close(step["train/sobolev/total"], weight * step["train/sobolev/order_1"])
    assert log.of("total")[4] == 0.0


def test_under_accumulation_the_schedule_counts_updates():
    log = Log()
    spec = SobolevSpec(terms=[SobolevTerm(weight=Step([1.0, 3.0], [1]))])
    used = SobolevCallback(mlp(seed=7), spec)
    fit(Regressor(), points(size=32), used, log, accumulate_grad_batches=2)
    found = [total / term for total, term in zip(log.of("total"), log.of("order_1"), strict=True)]
    assert found == pytest.approx([1.0, 1.0, 3.0, 3.0])


def test_every_third_step_carries_the_weight_of_three():
    teacher, log = CountsCalls(), Log()
    spec = SobolevSpec(terms=[SobolevTerm(weight=Linear(1.0, 0.0, steps=8), every_n_steps=3)])
    used = SobolevCallback(teacher, spec, doctor=False)
    fit(Regressor(lr=1e-3), points(size=64), used, log)
    assert teacher.calls == 3
    for number in range(8):
        expected = 3 * (1.0 - number / 8) * log.of("order_1")[number] if number % 3 == 0 else 0.0
        assert log.of("total")[number] == pytest.approx(expected)


def test_a_weight_of_zero_asks_no_teacher_and_teaches_nothing():
    teacher, plain, module = CountsCalls(), Regressor(), Regressor()
    spec = SobolevSpec(terms=[SobolevTerm(weight=0.0)])
    fit(plain, points())
    fit(module, points(), SobolevCallback(teacher, spec))
    assert teacher.calls == 0
    assert_close(weights(module), weights(plain), rtol=0, atol=0)


def test_the_teacher_is_asked_once_a_batch_whatever_the_number_of_terms():
    teacher = CountsCalls()
    terms = [SobolevTerm(), SobolevTerm(order=2), SobolevTerm(side="tangent", name="t")]
    # the doctor asks a few times more, once
    taught = SobolevCallback(teacher, SobolevSpec(terms=terms), doctor=False)
    fit(Regressor(), points(), taught)
    assert teacher.calls == 3


def test_infinite_outputs_do_not_poison_the_loss():
    """Masked logits are minus infinity; their softmax is a number."""

    class Masked(Regressor):
        def forward(self, x):
            return self.net(x).masked_fill(torch.tensor([False, True]), float("-inf"))

        def training_step(self, batch, batch_idx):
            return self(batch[0]).softmax(-1).sum()

    module = Masked()
    spec = SobolevSpec(on=lambda y: y[:, :1])
    log = Log()
    fit(module, points(), SobolevCallback(mlp(seed=7), spec), log)
    assert weights(module).isfinite().all()
    assert torch.tensor(log.of("total")).isfinite().all()


# Unknown targets


def batches(gradients):
    x = torch.ones(4, 3, dtype=torch.float64)
    return as_loader([(x, torch.zeros(4, 2).double(), g.double()) for g in gradients])


def taught_by_batch(gradients, **options):
    module, log = Learns(), Log()
    spec = SobolevSpec(terms=[SobolevTerm(projection="basis", num_projections=None, **options)])
    fit(module, batches(gradients), SobolevCallback(BatchTeacher("2"), spec), log)
    return weights(module), log


def partly_known():
    gradients = torch.ones(2, 4, 2, 3)
    gradients[:, 0] = torch.nan
    gradients[:, 1, 0, 1] = torch.nan
    return gradients


def test_rows_without_any_known_entry_are_counted_and_logged():
    found, log = taught_by_batch(partly_known())
    assert found.isfinite().all()
    assert log.of("order_1_unknown_rows") == [1.0, 1.0]


def test_a_batch_that_knows_nothing_warns_once_and_teaches_nothing():
    nothing = torch.full((2, 4, 2, 3), torch.nan)
    with pytest.warns(UserWarning, match="no row of this batch has a known target") as said:
        found, log = taught_by_batch(nothing)
    assert sum("known target" in str(warning.message) for warning in said) == 1
    plain = Learns()
    fit(plain, batches(nothing))
    assert_close(found, weights(plain), rtol=0, atol=0)
    assert log.of("order_1_unknown_rows") == [4.0, 4.0]
    assert log.of("order_1") == [0.0, 0.0]


def test_a_fraction_of_rows_takes_the_targets_of_the_same_rows():
    jacobian = torch.func.vmap(torch.func.jacrev(mlp(seed=7)))
    data = as_loader([(x, y, jacobian(x).detach()) for x, y in points()])
    term = SobolevTerm(rows=0.5)
    assert_close(taught(Learns(), term, data, teacher=BatchTeacher("2")), by_hand(None, term))


# Logging without detours gives what LightningModule.log gives


EPOCHS = {"max_epochs": 3, "log_every_n_steps": 1}


def logged(module=None, **options):
    log = Log()
    used = fit(module or Regressor(), points(), SobolevCallback(mlp(seed=7)), log, **options)
    return log.steps, used


def test_every_step_of_every_epoch_is_logged_as_by_the_module_itself(monkeypatch):
    found, _ = logged(**EPOCHS)
    monkeypatch.setattr(step_log, "_HOOK", "another hook")  # of which nothing was logged
    expected, _ = logged(**EPOCHS)
    assert len(found) == 9
    assert_close(found, expected, rtol=0, atol=0)
    assert len({float(step["train/sobolev/order_1"]) for step in found}) == 9


def test_the_module_is_asked_only_for_the_first_batch_of_an_epoch(monkeypatch):
    calls = []
    original = step_log.LightningModule.log

    def counting(self, name, *args, **kwargs):
        calls.append(name)
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(step_log.LightningModule, "log", counting)
    logged(**EPOCHS)
    assert len(calls) == 3 * 2


def test_a_module_with_a_log_of_its_own_is_asked_every_time():
    class Prefixed(Regressor):
        def log(self, name, *args, **kwargs):
            super().log(f"mine/{name}", *args, **kwargs)

    steps, _ = logged(Prefixed(), **EPOCHS)
    assert all(
        set(step) == {"mine/train/sobolev/order_1", "mine/train/sobolev/total"} for step in steps
    )


@pytest.mark.parametrize("missing", ["_results", "meta"])
def test_another_release_of_lightning_is_logged_by_the_documented_way(missing):
    results = {"training_step.a": object()} if missing == "meta" else None
    calls = []

    class Module:
        _trainer = type("Trainer", (), {"_results": results})()

        def log(self, name, value, batch_size):
            calls.append((name, value, batch_size))

    value = torch.ones(())
    step_log.log_step(Module(), "a", value, 3)
    assert calls == [("a", value, 3)]
