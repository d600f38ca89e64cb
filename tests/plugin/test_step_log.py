"""Logging without detours gives what ``LightningModule.log`` gives."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback
from lightning_sobolev.plugin import step_log
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points
from tests.plugin.test_logs import Log

EPOCHS = {"max_epochs": 3, "log_every_n_steps": 1}


def logged(module=None, **options):
    log = Log()
    used = fit(module or Regressor(), points(), SobolevCallback(mlp(seed=7)), log, **options)
    return log.steps, used


def test_every_step_of_every_epoch_is_logged_as_by_the_module_itself(monkeypatch):
    found, _ = logged(**EPOCHS)
    monkeypatch.setattr(step_log, "_is_later_batch", lambda _: False)
    expected, _ = logged(**EPOCHS)
    assert len(found) == 9
    assert_close(found, expected, rtol=0, atol=0)
    assert len({float(step["train/sobolev/order_1"]) for step in found}) == 9


def test_what_is_left_at_the_end_is_the_last_step():
    steps, trainer = logged(**EPOCHS)
    for key in ("train/sobolev/order_1", "train/sobolev/total"):
        assert_close(trainer.callback_metrics[key], steps[-1][key], rtol=0, atol=0)


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


@pytest.mark.parametrize("missing", ["_results", "update_metrics"])
def test_another_release_of_lightning_is_logged_by_the_documented_way(missing):
    results = {"training_step.a": object()} if missing == "update_metrics" else None
    calls = []

    class Module:
        _trainer = type("Trainer", (), {"_results": results})()

        def log(self, name, value, batch_size):
            calls.append((name, value, batch_size))

    value = torch.ones(())
    step_log.log_step(Module(), "a", value, 3)
    assert calls == [("a", value, 3)]
