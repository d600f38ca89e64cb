"""Stages in processes of their own, on one machine: started, watched, and named when one is lost.

Every process gets a copy of its section and its model and hands the trained ones back at the end.
"""

import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from lightning_sobolev.experiments.synthetic_gradients.processes.channel import Cut, build_cut
from lightning_sobolev.experiments.synthetic_gradients.processes.settings import (
    Optimizers,
    Pipeline,
    StageReport,
)
from lightning_sobolev.experiments.synthetic_gradients.processes.stage import (
    DONE,
    Batches,
    StageProcess,
)
from lightning_sobolev.experiments.synthetic_gradients.step import Stage

_POLL = 0.5
_NOT_STARTED = -1


def run_pipeline(
    stages: Sequence[Stage],
    batches: Batches,
    optimizers: Optimizers,
    pipeline: Pipeline,
    watch: Callable[[Sequence[int]], None] = lambda _: None,
) -> list[StageReport]:
    """Train stages, each in a process of its own, and wait for the end.

    With a kind whose gradient is the true one this is the locked pipeline to compare with: every
    stage waits for the gradient of a batch before it takes the next.

    Args:
        stages: The stages, the lowest first; have the trained parameters at the end.
        batches: ``{"x": ..., "y": ...}``; iterated anew when it ends. Goes to another process, so
            it and ``optimizers`` must be picklable.
        optimizers: Build what trains sections and models.
        pipeline: How the stages work beside each other.
        watch: Called every half second with the steps that each stage has done.

    Returns:
        A report of every stage.

    Raises:
        RuntimeError: If a process failed, died or gave no sign for too long; names its stage. The
            others are ended.
    """
    method = _start_method()
    context = multiprocessing.get_context(method)
    started = context.Barrier(len(stages))
    cuts = [build_cut(context, pipeline.capacity) for _ in stages[1:]]
    signs = torch.full((len(stages), 2), _NOT_STARTED).share_memory_()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        # as bytes: else every tensor takes an open file, of which there are not enough
        common = (optimizers, pipeline, Path(folder))
        tasks = [pickle.dumps((s, batches if s.is_lowest else (), *common)) for s in stages]
        running = start_processes(  # type: ignore[no-untyped-call]
            _live, (tasks, cuts, signs, started), len(stages), join=False, start_method=method
        )
        try:
            _join(running, signs, pipeline.timeout, watch)
        finally:
            for process in running.processes:
                process.kill()
                process.join()
        return [_taken_back(stage, Path(folder) / str(n)) for n, stage in enumerate(stages)]


def _start_method() -> str:
    if sys.platform == "win32":
        return "spawn"
    # what every stage would import by itself is imported once
    multiprocessing.set_forkserver_preload(["__main__", __name__])
    return "forkserver"


def _join(
    running: ProcessContext, signs: Tensor, timeout: float, watch: Callable[[Sequence[int]], None]
) -> None:
    seen = [(sign, time.monotonic()) for sign in signs.tolist()]
    try:
        while not running.join(timeout=_POLL, grace_period=_POLL):
            watch(signs[:, DONE].clamp(min=0).tolist())
            for number, sign in enumerate(signs.tolist()):
                is_silent = running.processes[number].is_alive() and sign[DONE] != _NOT_STARTED
                if sign != seen[number][0] or not is_silent:
                    seen[number] = (sign, time.monotonic())
                if time.monotonic() - seen[number][1] > timeout:
                    raise RuntimeError(
                        f"stage {number} must give a sign in {timeout:g} s, got none: the other "
                        "stages were ended"
                    )
    except ProcessExitedException as error:
        cause = error.signal_name or f"exit code {error.exit_code}"
        raise RuntimeError(
            f"stage {error.error_index} must finish, got {cause}: the other stages were ended"
        ) from error
    except ProcessRaisedException as error:
        reason = str(error).strip().splitlines()[-1]
        raise RuntimeError(f"stage {error.error_index} must finish, got {reason}") from error


def _live(
    number: int, tasks: Sequence[bytes], cuts: Sequence[Cut], signs: Tensor, started: Barrier
) -> None:
    torch.set_num_threads(1)
    # needs no answer of the sender, who may be lost; its first use starts a helper
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    torch.zeros(1).share_memory_()  # type: ignore[no-untyped-call]
    stage, batches, optimizers, pipeline, folder = pickle.loads(tasks[number])
    below = None if stage.is_lowest else cuts[number - 1]
    above = None if stage.is_highest else cuts[number]
    try:
        process = StageProcess(stage, optimizers, pipeline, below, above, signs[number])
        started.wait()
        report = process.run(batches)
        parts = {name: part.state_dict() for name, part in _parts(stage).items()}
        torch.save({"report": asdict(report), **parts}, folder / str(number))
    except BaseException:
        for cut in cuts:  # else the process waits for readers that may be lost
            cut.up.abandon()
            cut.down.abandon()
        raise


def _taken_back(stage: Stage, file: Path) -> StageReport:
    stored: dict[str, Any] = torch.load(file, weights_only=True)
    for name, part in _parts(stage).items():
        part.load_state_dict(stored[name])
    return StageReport(**stored["report"])


def _parts(stage: Stage) -> dict[str, nn.Module]:
    return {"section": stage.section} | ({} if stage.model is None else {"model": stage.model})
