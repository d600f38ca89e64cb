"""Trains under many strategies in one group of two processes; the first one stores the weights.

One group for all cases: starting two processes takes longer than all their trainings.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from lightning_sobolev import CompileSettings, SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import as_loader, points, trainer, weights

STEPS = 8
EVERY = {"projection": "basis", "num_projections": None}
ORDER_1 = (SobolevTerm(**EVERY, weight=0.5),)
ALL = (
    *ORDER_1,
    SobolevTerm(**EVERY, side="tangent", name="tangent", weight=0.1),
    SobolevTerm(**EVERY, order=2, weight=0.01),
)
RANDOM = SobolevTerm(weight=0.5, num_projections=2)


class SameOnEveryRank(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        mine = weights(pl_module)
        assert_close(mine, trainer.strategy.broadcast(mine, src=0), rtol=0, atol=0)


class Shared(Regressor):
    def part(self, batch):
        return [tensor[self.global_rank :: self.trainer.world_size] for tensor in batch]

    def training_step(self, batch, batch_idx):
        return super().training_step(self.part(batch), batch_idx)


class DerivativeAlone(Shared):
    def training_step(self, batch, batch_idx):
        x, _ = self.part(batch)
        self.net(x)
        return torch.zeros((), dtype=x.dtype)


class Manual(Shared, ManualRegressor):
    def training_step(self, batch, batch_idx):
        return ManualRegressor.training_step(self, self.part(batch), batch_idx)


class Unused(Shared):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2).double()
        nn.init.ones_(self.idle.weight)
        nn.init.ones_(self.idle.bias)


class Sharded(Shared):
    """Split over the processes by ``fully_shard``; whole in one process."""

    def __init__(self, by_layer, reshard_after_forward):
        super().__init__()
        self.by_layer, self.reshard = by_layer, reshard_after_forward

    def configure_model(self):
        if self.trainer.world_size == 1:
            return
        options = {"mesh": self.device_mesh["data_parallel"], "reshard_after_forward": self.reshard}
        for layer in self.net if self.by_layer else ():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, **options)
        fully_shard(self.net, **options)


class ShardedAlone(Sharded, DerivativeAlone):
    pass


@dataclass
class Case:
    """One training: how module and strategy are built, and the options of callback and trainer.

    ``dtype`` is that of the data and, before the trainer converts it, of the module.
    """

    make: Any = Shared
    strategy: Any = DDPStrategy
    engine: str = "tape"
    compile: Any = False
    terms: Any = ORDER_1
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


def _ddp(**options):
    return lambda: DDPStrategy(**options)


def _split():
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


def _sharded(by_layer, reshard, alone=False, **changes):
    kind = ShardedAlone if alone else Sharded
    # The strategy knows no 64-true; under 32-true it leaves a float64 module as it is.
    options = {"precision": "32-true"}
    return Case(lambda: kind(by_layer, reshard), _split, options=options, **changes)


_DDP = {
    "ddp": {},
    "ddp, find_unused_parameters": {"find_unused_parameters": True},
    "ddp, static_graph": {"static_graph": True},
    "ddp, gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}
_FSDP2 = {
    f"FSDP2, {'by layer' if by_layer else 'root only'}, reshard_after_forward={reshard}": (
        by_layer,
        reshard,
    )
    for by_layer in (True, False)
    for reshard in (True, False)
}
_BY_LAYER, *_ = _FSDP2

_HALF_THE_ROWS = replace(RANDOM, rows=0.5)

EXACT = {
    **{(n, "tape"): Case(strategy=_ddp(**o)) for n, o in _DDP.items()},
    ("ddp", "func"): Case(engine="func"),
    **{("ddp, all terms", engine): Case(engine=engine, terms=ALL) for engine in ("tape", "func")},
    ("ddp, unused parameters", "tape"): Case(Unused, _ddp(find_unused_parameters=True)),
    ("ddp, manual optimization", "tape"): Case(Manual),
    ("ddp, accumulate_grad_batches=2", "tape"): Case(options={"accumulate_grad_batches": 2}),
    ("ddp, gradient_clip_val", "tape"): Case(options={"gradient_clip_val": 0.5}),
    **{(n, "tape"): _sharded(*how) for n, how in _FSDP2.items()},
    (f"{_BY_LAYER}, all terms", "tape"): _sharded(True, True, terms=ALL),
    **{(f"{n}, derivatives alone", "tape"): Case(DerivativeAlone, _ddp(**o))
       for n, o in _DDP.items()},
    **{(f"{n}, derivatives alone", "tape"): _sharded(*how, alone=True)
       for n, how in _FSDP2.items()},
}  # fmt: skip
"""By strategy and engine: equal to one process in float64."""

ROUNDED = {
    (name, engine, precision): Case(
        make, strategy, engine, options={"precision": precision}, dtype=torch.float32
    )
    for name, engine, make, strategy in [
        ("ddp", "tape", Shared, DDPStrategy),
        ("ddp", "func", Shared, DDPStrategy),
        (_BY_LAYER, "tape", lambda: Sharded(True, True), _split),
    ]
    for precision in ("32-true", "bf16-mixed", "bf16-true")
}
"""By strategy, engine and precision: near one process in float64."""

OWN = {
    ("ddp", "own directions"): Case(terms=(RANDOM,)),
    ("ddp", "own directions and rows"): Case(terms=(_HALF_THE_ROWS,)),
    ("ddp", "own directions, compiled"): Case(
        engine="func", terms=(RANDOM,), compile=CompileSettings(backend="aot_eager")
    ),
    ("ddp", "own directions and rows, compiled"): Case(
        engine="func", terms=(_HALF_THE_ROWS,), compile=CompileSettings(backend="aot_eager")
    ),
    (_BY_LAYER, "own directions and rows"): _sharded(True, True, terms=(_HALF_THE_ROWS,)),
}
"""Every process draws for itself."""

CASES = {**EXACT, **ROUNDED, **OWN}

QUICK = [
    ("ddp", "tape"),
    ("ddp, static_graph", "tape"),
    ("ddp, derivatives alone", "tape"),
    ("ddp", "own directions"),
    (f"{_BY_LAYER}, derivatives alone", "tape"),
    (_BY_LAYER, "own directions and rows"),
]
"""Those that every run of the tests tries; the others are slow."""


def train(case, devices=1):
    """Return the trained weights, whole; in one process in float64 whatever the case says."""
    options = {"devices": devices, "use_distributed_sampler": False, **case.options}
    dtype, strategy = case.dtype, case.strategy()
    if devices == 1:
        dtype, strategy = torch.float64, "auto"
        options.pop("precision", None)
    spec = SobolevSpec(terms=case.terms)
    used = SobolevCallback(
        mlp(seed=7),
        spec,
        module="net",
        engine=case.engine,
        compile=case.compile,
        seed=3,
        doctor=False,
    )
    module = case.make().to(dtype)
    data = [[part.to(dtype) for part in batch] for batch in points(size=8 * STEPS)]
    callbacks = [used, SameOnEveryRank()] if isinstance(strategy, DDPStrategy) else [used]
    trainer(*callbacks, strategy=strategy, **options).fit(module, as_loader(data))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
    return torch.cat([p.detach().double().reshape(-1) for p in whole])


def train_in_two_processes(path, names):
    numbers = [str(list(CASES).index(name)) for name in names]
    in_two_processes([sys.executable, "-m", "tests.plugin._processes", str(path), *numbers])
    return torch.load(path)


def in_two_processes(command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group = [
        subprocess.Popen(
            command, env={**environment, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in group]
    finally:
        for process in group:
            process.kill()
    assert all(process.returncode == 0 for process in group), "\n".join(e[-3000:] for e in errors)


def trained_by_two(name, path):
    """Run a module that calls :func:`train_all` as two processes; return what it found."""
    in_two_processes([sys.executable, "-m", name, str(path)])
    return torch.load(path)


def train_all(path, trained, count):
    """Train every case as one of two processes; the first one writes what came out."""
    flags = {"devices": 2, "use_distributed_sampler": False}
    found = [trained(number, strategy=DDPStrategy(), **flags) for number in range(count)]
    if torch.distributed.get_rank() == 0:
        torch.save(found, path)
    torch.distributed.destroy_process_group()


def main(path, *numbers):
    chosen = [list(CASES)[int(number)] for number in numbers]
    found = {name: train(CASES[name], devices=2) for name in chosen}
    if torch.distributed.get_rank() == 0:
        torch.save(found, path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
