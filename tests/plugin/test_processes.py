"""Several processes train as one: the same global batches give the same weights."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback
from lightning_sobolev.plugin.resolve import check_strategy
from tests.plugin._loops import train_by_hand
from tests.plugin._processes import (
    CASES,
    EXACT,
    OWN,
    QUICK,
    STEPS,
    Case,
    train,
    train_in_two_processes,
)  # fmt: skip
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points, weights

BOUNDS = {"32-true": 1e-6, "bf16-mixed": 2e-3, "bf16-true": 3e-2}


def check(name, found, deviation):
    case = CASES[name]
    if name in OWN:
        net, (term,) = mlp(), case.terms
        train_by_hand(net, mlp(seed=7), points(size=8 * STEPS), term, seed=3, ranks=2)
        assert_close(found, weights(net), rtol=1e-12, atol=1e-12, msg=lambda m: f"{name}: {m}")
        return
    expected = train(case)
    strategy, engine, precision = (*name, "64-true") if name in EXACT else name
    distance = deviation("strategies", strategy, precision, engine, found=found, expected=expected)
    assert distance < BOUNDS.get(precision, 1e-12), name
    start = torch.cat([p.detach().reshape(-1) for p in case.make().parameters()])
    assert (expected - start).norm() > 0.1, name


def test_two_processes_train_as_one(tmp_path, deviation):
    found = train_in_two_processes(tmp_path / "weights.pt", QUICK)
    for name in QUICK:
        check(name, found[name], deviation)


@pytest.mark.slow
def test_two_processes_train_as_one_in_every_mode(tmp_path, deviation):
    rest = [name for name in CASES if name not in QUICK]
    found = train_in_two_processes(tmp_path / "weights.pt", rest)
    for name in rest:
        check(name, found[name], deviation)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes_that_lightning_starts_itself_train_as_one(start, deviation):
    """``ddp_spawn`` and ``ddp_fork``, which is also ``ddp_notebook``."""
    case = Case(strategy=lambda: DDPStrategy(start_method=start))
    found, expected = train(case, devices=2), train(case)
    name = f"ddp, start_method={start}"
    deviation("strategies", name, "64-true", "tape", found=found, expected=expected)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def mesh():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_a_sharded_student_is_refused_under_torch_func(mesh):
    class Sharded(Regressor):
        def configure_model(self):
            fully_shard(self.net, mesh=mesh)

    text = "engine='func' cannot run a student split by fully_shard.*use engine='tape'"
    with pytest.raises(ValueError, match=text):
        fit(Sharded(), points(), SobolevCallback(mlp(seed=7), engine="func"))


# Strategies that are refused


def stub(strategy):
    return SimpleNamespace(strategy=strategy)


def test_strategies_without_double_backward_are_refused():
    text = "strategy: FSDPStrategy does not support double backward.*use ModelParallelStrategy"
    with pytest.raises(ValueError, match=text):
        check_strategy(stub(FSDPStrategy()))
    deepspeed = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # its package is not needed for this
    with pytest.raises(ValueError, match="strategy: DeepSpeedStrategy does not support double"):
        check_strategy(stub(deepspeed))
    check_strategy(stub(DDPStrategy()))


def test_refused_strategies_of_the_other_import_name():
    other = pytest.importorskip("pytorch_lightning")
    with pytest.raises(ValueError, match="strategy: FSDPStrategy does not support double"):
        check_strategy(stub(other.strategies.FSDPStrategy()))
    check_strategy(stub(other.strategies.DDPStrategy()))
