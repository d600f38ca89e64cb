"""Every way of training that is compared, by name: steps written by hand, and the callback's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lightning_sobolev.experiments.benchmark.models import Workload
from lightning_sobolev.functional.projections import draw
from lightning_sobolev.plugin import SobolevCallback
from lightning_sobolev.spec import OUTPUT_MAPS, SobolevSpec, SobolevTerm
from lightning_sobolev.teachers import CachedTeacher, CacheSettings, NetworkTeacher, cache_answers

Net = Callable[[Tensor], Tensor]
Batch = dict[str, Tensor]
Step = Callable[[Net, Net, Batch, Tensor | None], Tensor]
"""From student, teacher (output maps applied), batch and drawn directions to the loss."""


class _Student(pl.LightningModule):
    """Observes one forward and has no loss of its own."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net, teacher = workload.networks()
        self._teacher = [teacher]  # in a list, so that it is no submodule

    @property
    def teacher(self) -> nn.Module:
        return self._teacher[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        del batch_idx
        self.net(batch["x"])
        return batch["x"].new_zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class _ByHand(_Student):
    """Takes a step written by hand; compiled, all of it but the backward pass is one function."""

    def __init__(
        self,
        workload: Workload,
        step: Step,
        *,
        directed: bool = True,
        only_parameters: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(workload)
        self._directed, self._only_parameters = directed, only_parameters
        net, teacher, on = self.net, self.teacher, OUTPUT_MAPS[workload.on]

        def whole(batch: Batch, u: Tensor | None) -> Tensor:
            return step(lambda x: on(net(x)), lambda x: on(teacher(x)), batch, u)

        self._whole = torch.compile(whole, fullgraph=True, dynamic=False) if compiled else whole

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        del batch_idx
        with sdpa_kernel(SDPBackend.MATH):  # the kernel that has a second derivative
            return self._whole(batch, _directions(batch["y"]) if self._directed else None)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._only_parameters:  # else in the input too, which nobody reads
            kwargs["inputs"] = list(self.parameters())
        super().backward(loss, *args, **kwargs)


def _directions(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u = draw("sphere", y.shape, num_projections=1, generator=generator, dtype=y.dtype)
    return u[0].to(y.device)


def _squared(student: Float[Tensor, "batch ..."], target: Float[Tensor, "batch ..."]) -> Tensor:
    return (student - target).square().flatten(1).sum(1).mean()


def plain(net: Net, teacher: Net, batch: Batch, u: None = None) -> Tensor:
    """Fit values that are in the batch."""
    del teacher, u
    return _squared(net(batch["x"]), batch["y"])


def distillation(net: Net, teacher: Net, batch: Batch, u: None = None) -> Tensor:
    """Fit values that the teacher is asked for."""
    del u
    with torch.no_grad():
        target = teacher(batch["x"])
    return _squared(net(batch["x"]), target)


def as_usual(net: Net, teacher: Net, batch: Batch, u: Tensor) -> Tensor:
    """One leaf for both networks, and a backward pass that reaches it."""
    x = batch["x"].detach().requires_grad_()
    y, target = net(x), teacher(x)
    (row,) = torch.autograd.grad(y, x, u, create_graph=True)
    (target_row,) = torch.autograd.grad(target, x, u, retain_graph=True)
    return _squared(y, target.detach()) + _squared(row, target_row)


def at_best(net: Net, teacher: Net, batch: Batch, u: Tensor) -> Tensor:
    """A leaf for each, and a teacher's graph that is gone before the student begins."""
    point = batch["x"].detach().requires_grad_()
    target = teacher(point)
    (target_row,) = torch.autograd.grad(target, point, u)
    x = batch["x"].detach().requires_grad_()
    y = net(x)
    (row,) = torch.autograd.grad(y, x, u, create_graph=True)
    return _squared(y, target.detach()) + _squared(row, target_row)


def by_vjp(net: Net, teacher: Net, batch: Batch, u: Tensor) -> Tensor:
    """Value and row by torch's transform, which a compiler takes whole."""

    def value_and_row(fn: Net) -> tuple[Tensor, Tensor]:
        found: Any = torch.func.vjp(fn, batch["x"])
        y, pull = found
        return y, pull(u)[0]

    (target, target_row), (y, row) = value_and_row(teacher), value_and_row(net)
    return _squared(y, target) + _squared(row, target_row)


def over_outputs(net: Net, teacher: Net, batch: Batch, u: None = None) -> Tensor:
    """The whole Jacobian, one backward pass an output."""
    del u
    x = batch["x"].detach().requires_grad_()
    y, target = net(x), teacher(x)

    def jacobian(output: Tensor, keep: bool) -> Tensor:
        columns = output.flatten(1).sum(0)
        rows = [
            torch.autograd.grad(column, x, retain_graph=True, create_graph=keep)[0]
            for column in columns
        ]
        return torch.stack(rows, 1)

    target_rows = jacobian(target, keep=False)
    return _squared(y, target.detach()) + _squared(jacobian(y, keep=True), target_rows)


def by_jacrev(net: Net, teacher: Net, batch: Batch, u: None = None) -> Tensor:
    """The whole Jacobian, by torch's transform of a transform."""
    del u

    def value_and_jacobian(fn: Net) -> tuple[Tensor, Tensor]:
        def twice(x: Tensor) -> tuple[Tensor, Tensor]:
            y = fn(x[None])[0]
            return y, y

        rows, y = torch.func.vmap(torch.func.jacrev(twice, has_aux=True))(batch["x"])
        return y, rows

    with torch.no_grad():
        target, target_rows = value_and_jacobian(teacher)
    y, rows = value_and_jacobian(net)
    return _squared(y, target) + _squared(rows, target_rows)


Built = tuple[_Student, list[pl.Callback]]


def _by_hand(step: Callable[..., Tensor], **options: bool) -> Callable[..., Built]:
    return lambda workload, _: (_ByHand(workload, step, **options), [])


def _callback(workload: Workload, folder: Path, *, rows: float = 1.0, **options: Any) -> Built:
    del folder
    student = _Student(workload)
    spec = _spec(workload, SobolevTerm(rows=rows, normalize="none"))
    return student, [SobolevCallback(student.teacher, spec, module="net", doctor=False, **options)]


def _spec(workload: Workload, derivative: SobolevTerm) -> SobolevSpec:
    return SobolevSpec(terms=[SobolevTerm(order=0, normalize="none"), derivative], on=workload.on)


class _Checkpointed(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "batch *in"]) -> Float[Tensor, "batch *out"]:
        y: Tensor = checkpoint(self.network, x, use_reentrant=False)
        return y


def _checkpointed(workload: Workload, folder: Path) -> Built:
    student, callbacks = _callback(workload, folder, engine="tape")
    student.net = _Checkpointed(student.net)
    return student, callbacks


def _cached(workload: Workload, folder: Path, *, side: Literal["cotangent", "tangent"]) -> Built:
    student, x = _Student(workload), workload.batch()["x"]
    projection = "rademacher" if side == "tangent" else "sphere"
    settings = CacheSettings(side=side, projection=projection, on=workload.on, num_draws=2)
    place = folder / f"{workload.name}-{side}"
    cache_answers(NetworkTeacher(student.teacher), lambda i: x[i], len(x), place, settings)
    spec = _spec(workload, SobolevTerm(side=side, projection=projection, normalize="none"))
    engine: Literal["func", "tape"] = "func" if side == "tangent" else "tape"
    callback = SobolevCallback(
        CachedTeacher(place), spec, module="net", engine=engine, doctor=False
    )
    return student, [callback]


@dataclass(frozen=True)
class Method:
    """One way of training.

    Args:
        title: What tables call it.
        objective: What it computes, which decides the arithmetic limit that it is compared with.
        build: From a workload, and a folder for files, to a module and its callbacks.
        counted_as: Whose operations it does, where they cannot be counted: in compiled code.
    """

    title: str
    objective: Literal["plain", "distillation", "derivative", "rows", "cached"]
    build: Callable[[Workload, Path], Built]
    counted_as: str | None = None


_valued = partial(_by_hand, directed=False)
METHODS = {
    "plain": Method("plain training", "plain", _valued(plain)),
    "distillation": Method("plain distillation", "distillation", _valued(distillation)),
    "as_usual": Method("by hand, as usual", "derivative", _by_hand(as_usual)),
    "at_best": Method(
        "by hand, at its best", "derivative", _by_hand(at_best, only_parameters=True)
    ),
    "over_outputs": Method(
        "loop over outputs", "derivative", _valued(over_outputs, only_parameters=True)
    ),
    "by_jacrev": Method("vmap(jacrev)", "derivative", _valued(by_jacrev, only_parameters=True)),
    "tape": Method("callback, tape", "derivative", partial(_callback, engine="tape")),
    "func": Method("callback, func", "derivative", partial(_callback, engine="func")),
    "plain_compiled": Method(
        "plain training, compiled", "plain", _valued(plain, compiled=True), "plain"
    ),
    "at_best_compiled": Method(
        "by hand, compiled", "derivative", _by_hand(by_vjp, compiled=True), "at_best"
    ),
    "compiled": Method(
        "callback, compiled", "derivative", partial(_callback, compile=True), "at_best"
    ),
    "checkpointed": Method("callback, checkpointed student", "derivative", _checkpointed),
    "rows": Method("callback, rows=0.25", "rows", partial(_callback, rows=0.25)),
    "bf16": Method(
        "callback, bf16 inner pass", "derivative", partial(_callback, inner_precision="bf16-mixed")
    ),
    "cached_vjp": Method("cached teacher, rows", "cached", partial(_cached, side="cotangent")),
    "cached_jvp": Method("cached teacher, columns", "cached", partial(_cached, side="tangent")),
}
