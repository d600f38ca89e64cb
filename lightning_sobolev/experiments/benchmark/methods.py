"""Every way of training that is compared, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_sobolev.experiments.benchmark import rivals
from lightning_sobolev.experiments.benchmark.rivals import ByHand, Student
from lightning_sobolev.experiments.benchmark.workloads import Workload
from lightning_sobolev.plugin import SobolevCallback
from lightning_sobolev.spec import SobolevSpec, SobolevTerm
from lightning_sobolev.teachers import (
    CachedTeacher,
    CacheSettings,
    NetworkTeacher,
    cache_answers,
)

Built = tuple[Student, list[pl.Callback]]
Objective = Literal["plain", "distillation", "derivative", "rows", "cached"]


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
    objective: Objective
    build: Callable[[Workload, Path], Built]
    counted_as: str | None = None


def _by_hand(step: rivals.Step, only_parameters: bool = False) -> Callable[..., Built]:
    return lambda workload, _: (ByHand(workload, step, only_parameters=only_parameters), [])


def ours(
    workload: Workload,
    folder: Path | None = None,
    *,
    rows: float = 1.0,
    projections: int = 1,
    **options: Any,
) -> Built:
    """Return a student that observes one forward, and the callback that brings all its loss.

    Args:
        workload: What is trained.
        folder: Not used.
        rows: Share of the batch on which derivatives are matched.
        projections: Directions a step.
        options: Of the callback.
    """
    del folder
    student = Student(workload)
    derivative = SobolevTerm(rows=rows, num_projections=projections, normalize="none")
    spec = SobolevSpec(terms=[SobolevTerm(order=0, normalize="none"), derivative], on=workload.on)
    callback = SobolevCallback(student.teacher, spec, module="net", doctor=False, **options)
    return student, [callback]


def _compiled_by_hand(step: Callable[..., Any]) -> Callable[..., Built]:
    return lambda workload, _: (rivals.Compiled(workload, step), [])


def checkpointed(workload: Workload, folder: Path) -> Built:
    """Return a student that keeps no activations, and the callback."""
    student, callbacks = ours(workload, folder, engine="tape")
    student.net = rivals.Checkpointed(student.net)
    return student, callbacks


def cached(workload: Workload, folder: Path, *, side: Literal["cotangent", "tangent"]) -> Built:
    """Return a student of a cached teacher.

    Args:
        workload: What is trained.
        folder: Where the cache goes.
        side: What is stored.
    """
    student, x = Student(workload), workload.batch()["x"]
    projection = "rademacher" if side == "tangent" else "sphere"
    settings = CacheSettings(side=side, projection=projection, on=workload.on, num_draws=2)
    place = folder / f"{workload.name}-{side}"
    cache_answers(NetworkTeacher(student.teacher), lambda i: x[i], len(x), place, settings)
    derivative = SobolevTerm(side=side, projection=projection, normalize="none")
    spec = SobolevSpec(terms=[SobolevTerm(order=0, normalize="none"), derivative], on=workload.on)
    engine: Literal["func", "tape"] = "func" if side == "tangent" else "tape"
    teacher = CachedTeacher(place)
    return student, [SobolevCallback(teacher, spec, module="net", engine=engine, doctor=False)]


METHODS = {
    "plain": Method("plain training", "plain", _by_hand(rivals.plain)),
    "distillation": Method("plain distillation", "distillation", _by_hand(rivals.distillation)),
    "as_usual": Method("by hand, as usual", "derivative", _by_hand(rivals.as_usual)),
    "at_best": Method("by hand, at its best", "derivative", _by_hand(rivals.at_best, True)),
    "over_outputs": Method("loop over outputs", "derivative", _by_hand(rivals.over_outputs, True)),
    "by_jacrev": Method("vmap(jacrev)", "derivative", _by_hand(rivals.by_jacrev, True)),
    "tape": Method("callback, tape", "derivative", partial(ours, engine="tape")),
    "func": Method("callback, func", "derivative", partial(ours, engine="func")),
    "plain_compiled": Method(
        "plain training, compiled", "plain", _compiled_by_hand(rivals.values_alone), "plain"
    ),
    "at_best_compiled": Method(
        "by hand, compiled", "derivative", _compiled_by_hand(rivals.by_vjp), "at_best"
    ),
    "compiled": Method("callback, compiled", "derivative", partial(ours, compile=True), "at_best"),
    "checkpointed": Method("callback, checkpointed student", "derivative", checkpointed),
    "rows": Method("callback, rows=0.25", "rows", partial(ours, rows=0.25)),
    "bf16": Method(
        "callback, bf16 inner pass", "derivative", partial(ours, inner_precision="bf16-mixed")
    ),
    "cached_vjp": Method("cached teacher, rows", "cached", partial(cached, side="cotangent")),
    "cached_jvp": Method("cached teacher, columns", "cached", partial(cached, side="tangent")),
}
