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
Step = Callable[[Net, Net, Batch, Tensor], Tensor]
"""From student, teacher (output maps applied), batch and drawn directions to the loss."""


class _Student(pl.LightningModule):
    """Observes one forward and has no loss of its own."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net, teacher = workload.networks()
        self.teachers = [teacher]  # in a list, so that it is no submodule

    def training_step(self, batch: Batch, *_: Any) -> Tensor:
        self.net(batch["x"])
        return batch["x"].new_zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class _ByHand(_Student):
    """Takes a step written by hand; compiled, all of it but the backward pass is one function."""

    def __init__(
        self, workload: Workload, step: Step, *, only_parameters: bool, compiled: bool
    ) -> None:
        super().__init__(workload)
        self._directed, self._only_parameters = step in _DIRECTED, only_parameters
        net, teacher, on = self.net, self.teachers[0], OUTPUT_MAPS[workload.on]

        def whole(batch: Batch, u: Tensor) -> Tensor:
            return step(lambda x: on(net(x)), lambda x: on(teacher(x)), batch, u)

        self._whole = torch.compile(whole, fullgraph=True, dynamic=False) if compiled else whole

    def training_step(self, batch: Batch, *_: Any) -> Tensor:
        u = y = batch["y"]
        if self._directed:
            generator = torch.Generator().manual_seed(0)
            u = draw("sphere", y.shape, num_projections=1, generator=generator, dtype=y.dtype)[0]
        with sdpa_kernel(SDPBackend.MATH):  # the kernel that has a second derivative
            return self._whole(batch, u.to(y.device))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._only_parameters:  # else in the input too, which nobody reads
            kwargs["inputs"] = list(self.parameters())
        super().backward(loss, *args, **kwargs)


def _squared(student: Float[Tensor, "batch ..."], target: Float[Tensor, "batch ..."]) -> Tensor:
    return (student - target).square().flatten(1).sum(1).mean()


def plain(net: Net, _teacher: Net, batch: Batch, _u: Tensor) -> Tensor:
    """Fit values that are in the batch."""
    return _squared(net(batch["x"]), batch["y"])


def distillation(net: Net, teacher: Net, batch: Batch, _u: Tensor) -> Tensor:
    """Fit values that the teacher is asked for."""
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


def over_outputs(net: Net, teacher: Net, batch: Batch, _u: Tensor) -> Tensor:
    """The whole Jacobian, one backward pass an output."""
    x = batch["x"].detach().requires_grad_()
    y, target = net(x), teacher(x)

    def jacobian(output: Tensor, keep: bool) -> Tensor:
        columns = output.flatten(1).sum(0)
        options: dict[str, Any] = {"retain_graph": True, "create_graph": keep}
        return torch.stack([torch.autograd.grad(one, x, **options)[0] for one in columns], 1)

    target_rows = jacobian(target, keep=False)
    return _squared(y, target.detach()) + _squared(jacobian(y, keep=True), target_rows)


def by_jacrev(net: Net, teacher: Net, batch: Batch, _u: Tensor) -> Tensor:
    """The whole Jacobian, by torch's transform of a transform."""

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


_DIRECTED = (as_usual, at_best, by_vjp)
Built = tuple[pl.LightningModule, list[pl.Callback]]


def _by_hand(
    step: Step, *, only_parameters: bool = False, compiled: bool = False
) -> Callable[[Workload, Path], Built]:
    options = {"only_parameters": only_parameters, "compiled": compiled}
    return lambda workload, _: (_ByHand(workload, step, **options), [])


def _callback(
    workload: Workload, _folder: Path, *, rows: float = 1.0, keep: bool = True, **options: Any
) -> Built:
    student = _Student(workload)
    spec = _spec(workload, SobolevTerm(rows=rows, normalize="none"))
    if not keep:
        student.net = _Checkpointed(student.net)
    matching = SobolevCallback(student.teachers[0], spec, module="net", doctor=False, **options)
    return student, [matching]


def _spec(workload: Workload, derivative: SobolevTerm) -> SobolevSpec:
    return SobolevSpec(terms=[SobolevTerm(order=0, normalize="none"), derivative], on=workload.on)


class _Checkpointed(nn.Sequential):
    def forward(self, x: Float[Tensor, "batch *in"]) -> Float[Tensor, "batch *out"]:
        y: Tensor = checkpoint(self[0], x, use_reentrant=False)
        return y


def _cached(workload: Workload, folder: Path, *, side: Literal["cotangent", "tangent"]) -> Built:
    student, x = _Student(workload), workload.batch()["x"]
    projection = "rademacher" if side == "tangent" else "sphere"
    settings = CacheSettings(side=side, projection=projection, on=workload.on, num_draws=2)
    place, teacher = folder / f"{workload.name}-{side}", NetworkTeacher(student.teachers[0])
    cache_answers(teacher, lambda i: x[i], len(x), place, settings)
    spec = _spec(workload, SobolevTerm(side=side, projection=projection, normalize="none"))
    engine: Literal["func", "tape"] = "func" if side == "tangent" else "tape"
    cached = CachedTeacher(place)
    return student, [SobolevCallback(cached, spec, module="net", engine=engine, doctor=False)]


@dataclass(frozen=True)
class Method:
    """One way of training."""

    title: str  # what tables call it
    build: Callable[[Workload, Path], Built]  # from a workload, and a folder for files
    # what it computes, which decides the arithmetic limit that it is compared with
    objective: Literal["plain", "distillation", "derivative", "rows", "cached"] = "derivative"
    counted_as: str | None = None  # whose operations it does: in compiled code none is counted


_best = partial(_by_hand, only_parameters=True)
METHODS = {
    "plain": Method("plain training", _by_hand(plain), "plain"),
    "distillation": Method("plain distillation", _by_hand(distillation), "distillation"),
    "as_usual": Method("by hand, as usual", _by_hand(as_usual)),
    "at_best": Method("by hand, at its best", _best(at_best)),
    "over_outputs": Method("loop over outputs", _best(over_outputs)),
    "by_jacrev": Method("vmap(jacrev)", _best(by_jacrev)),
    "tape": Method("callback, tape", partial(_callback, engine="tape")),
    "func": Method("callback, func", partial(_callback, engine="func")),
    "plain_compiled": Method(
        "plain training, compiled", _by_hand(plain, compiled=True), "plain", counted_as="plain"
    ),
    "at_best_compiled": Method(
        "by hand, compiled", _by_hand(by_vjp, compiled=True), counted_as="at_best"
    ),
    "compiled": Method(
        "callback, compiled", partial(_callback, compile=True), counted_as="at_best"
    ),
    "checkpointed": Method(
        "callback, checkpointed student", partial(_callback, keep=False, engine="tape")
    ),
    "rows": Method("callback, rows=0.25", partial(_callback, rows=0.25), "rows"),
    "bf16": Method("callback, bf16 inner pass", partial(_callback, inner_precision="bf16-mixed")),
    "cached_vjp": Method("cached teacher, rows", partial(_cached, side="cotangent"), "cached"),
    "cached_jvp": Method("cached teacher, columns", partial(_cached, side="tangent"), "cached"),
}
