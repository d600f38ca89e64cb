"""Sections in processes of their own, on one machine, that do not wait for each other.

Every process gets a copy of its section and its model and hands the trained ones back at the end.
"""

import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.processes.exchange import Neighbors
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import (
    Pipeline,
    SectionReport,
)
from lightning_sobolev.experiments.synthetic_gradients.processes.worker import (
    Activation,
    Part,
    Worker,
)

_MATCHING = Matching()
_POLL = 0.5

Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class _Task:
    """What a process is told."""

    sections: Sequence[nn.Module]
    models: Sequence[nn.Module]
    shapes: Sequence[tuple[int, ...]]
    kind: Kind
    matching: Matching
    optimize: Callable[[nn.Module, bool], Part]
    batches: Batches
    pipeline: Pipeline
    near: Path

    def worker(self, section: int) -> Worker:
        has_model = section < len(self.models)
        return Worker(
            self.optimize(self.sections[section], False),
            self.optimize(self.models[section], True) if has_model else None,
            kind=self.kind,
            matching=self.matching,
            is_first=section == 0,
            is_last=section == len(self.sections) - 1,
            room=self.pipeline.memory,
        )


def run_processes(
    sections: Sequence[nn.Module],
    models: Sequence[nn.Module],
    batches: Batches,
    *,
    kind: Kind,
    shapes: Sequence[tuple[int, ...]],
    optimize: Callable[[nn.Module, bool], Part],
    pipeline: Pipeline,
    matching: Matching = _MATCHING,
    watch: Callable[[Sequence[int]], None] = lambda _: None,
) -> list[SectionReport]:
    """Train sections, each in a process of its own, and wait for the end.

    With a kind whose message is the true gradient this is the locked pipeline to compare with:
    every section waits for the gradient of a batch before it takes the next.

    Args:
        sections: The sections, the lowest first; have the trained parameters at the end.
        models: A model for every cut; empty where the kind needs none.
        batches: ``{"x": ..., "y": ...}``; iterated anew when it ends. Goes to another process, so
            it and ``optimize`` must be picklable.
        kind: What passes the cuts.
        shapes: Shape of one row of the activation at every cut.
        optimize: Returns what trains a module; the second argument says whether it is a model.
        pipeline: How they work beside each other.
        matching: What models are taught.
        watch: Called every half second with the steps that each section has done.

    Returns:
        A report of every section.

    Raises:
        ValueError: If there are too few or too many models or shapes.
        RuntimeError: If a process failed or died; names its section. The others are ended.
    """
    needed_models = 0 if kind.model is None else len(sections) - 1
    if (len(models), len(shapes)) != (needed_models, len(sections) - 1):
        raise ValueError(
            f"models and shapes must be {needed_models} and {len(sections) - 1} for "
            f"{len(sections)} sections of this kind, got {len(models)} and {len(shapes)}"
        )
    method = _start_method(optimize)
    reports = multiprocessing.get_context(method).SimpleQueue()
    done = torch.zeros(len(sections), dtype=torch.int64)
    done.share_memory_()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as near:
        task = _Task(
            sections, models, shapes, kind, matching, optimize, batches, pipeline, Path(near)
        )
        # as bytes: tensors on their own take an open file each, of which there are not enough
        running = start_processes(  # type: ignore[no-untyped-call]
            _live,
            (pickle.dumps(task), done, reports),
            nprocs=len(sections),
            join=False,
            start_method=method,
        )
        _join(running, lambda: watch(done.tolist()))
        for name, part in _named_parts(task):
            part.load_state_dict(torch.load(Path(near) / name, weights_only=True))
    found = [reports.get() for _ in sections]
    return sorted(found, key=lambda report: report.section)


def _start_method(optimize: Callable[..., Part]) -> str:
    if sys.platform == "win32":
        return "spawn"
    # what every section would import by itself is imported once
    needed = getattr(optimize, "func", optimize).__module__
    multiprocessing.set_forkserver_preload(["__main__", __name__, needed])
    return "forkserver"


def _join(running: Any, watch: Callable[[], None]) -> None:
    try:
        while not running.join(timeout=_POLL, grace_period=3 * _POLL):
            watch()
    except ProcessExitedException as error:
        cause = error.signal_name or f"exit code {error.exit_code}"
        raise RuntimeError(
            f"section {error.error_index} (process {error.error_pid}) must finish, got {cause}: "
            "the other sections were ended"
        ) from error
    except ProcessRaisedException as error:
        reason = str(error).strip().splitlines()[-1]
        raise RuntimeError(
            f"section {error.error_index} (process {error.error_pid}) must finish, got {reason}"
        ) from error


def _named_parts(task: _Task) -> Iterator[tuple[str, nn.Module]]:
    for sort, parts in (("section", task.sections), ("model", task.models)):
        for number, part in enumerate(parts):
            yield f"{sort}_{number}", part


def _live(section: int, packed: bytes, done: Tensor, reports: Any) -> None:
    task: _Task = pickle.loads(packed)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(task.near / "rendezvous").as_uri(),
        rank=section,
        world_size=len(task.sections),
        timeout=timedelta(seconds=task.pipeline.timeout),
    )
    try:
        _train(section, task, done[section], reports)
    except ConnectionError:
        time.sleep(2 * _POLL)  # so that the one that was lost is the first that is found
        raise
    dist.barrier()
    dist.destroy_process_group()


def _train(section: int, task: _Task, done: Tensor, reports: Any) -> None:
    worker, dtype = task.worker(section), next(task.sections[0].parameters()).dtype
    neighbors = Neighbors(section, worker, task.shapes, task.pipeline, dtype)
    dist.barrier()
    seconds, waited = _work(worker, neighbors, task, done)
    lateness = worker.lateness / max(worker.learned, 1)
    reports.put(SectionReport(section, seconds, waited, worker.learned, worker.forgotten, lateness))
    for name, part in _named_parts(task):
        if name in (f"section_{section}", f"model_{section}"):
            torch.save(part.state_dict(), task.near / name)
    neighbors.close()


def _work(worker: Worker, neighbors: Neighbors, task: _Task, done: Tensor) -> tuple[float, float]:
    """Return the seconds up to the last step, and how many of them were waiting."""
    steps = task.pipeline.steps
    given = _numbered(task.batches, steps) if worker.is_first else neighbors.activations()
    started = ended = time.perf_counter()
    waited = 0.0
    for activation in given:
        _step(worker, neighbors, activation, task.pipeline)
        done += 1
        ended, waited = time.perf_counter(), neighbors.waited
    return ended - started, waited


def _step(worker: Worker, neighbors: Neighbors, given: Activation, pipeline: Pipeline) -> None:
    time.sleep(pipeline.delay)
    neighbors.send_up(worker.forward(given))
    gradient = neighbors.target(given.number).message if worker.awaits_gradient else None
    if worker.moves:
        time.sleep(pipeline.delay)
    if (target := worker.move(gradient)) is not None:
        neighbors.send_down(target)
    if worker.model is None:
        return
    if pipeline.lockstep:
        worker.learn(neighbors.target(given.number))
    for late in neighbors.late_targets():
        worker.learn(late)


def _numbered(batches: Batches, steps: int) -> Iterator[Activation]:
    def forever() -> Iterator[Mapping[str, Tensor]]:
        passed = 0
        while True:
            for batch in batches:
                passed += 1
                yield batch
            if not passed:
                raise ValueError("batches must give at least one batch, got none")

    for number, batch in enumerate(islice(forever(), steps)):
        yield Activation(number, batch["x"], batch["y"])
