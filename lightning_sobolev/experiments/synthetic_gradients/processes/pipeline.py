"""Stages in processes of their own, on one machine: started, watched, named when one is lost."""

import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from lightning_sobolev.experiments.synthetic_gradients.processes.channel import Cut
from lightning_sobolev.experiments.synthetic_gradients.processes.stage import (
    DONE,
    Batches,
    Pipeline,
    StageProcess,
    StageReport,
)
from lightning_sobolev.experiments.synthetic_gradients.step import Stage

_POLL = 0.5
_NOT_STARTED = -1


def run_pipeline(
    stages: Sequence[Stage], batches: Batches, pipeline: Pipeline
) -> list[StageReport]:
    """Train stages, each in a process of its own; name a stage that is lost, and end the others.

    With a kind whose gradient is the true one this is the locked pipeline to compare with: every
    stage waits for the gradient of a batch before it takes the next.

    The stages, the lowest first, have the trained parameters at the end. ``batches`` are iterated
    anew when they end; they and the ``pipeline`` go to other processes and must be picklable.
    """
    method = "spawn" if sys.platform == "win32" else "forkserver"
    if method == "forkserver":  # what every stage would import by itself is imported once
        multiprocessing.set_forkserver_preload(["__main__", __name__])
    context = multiprocessing.get_context(method)
    started = context.Barrier(len(stages))
    cuts = [Cut(context, pipeline.capacity) for _ in stages[1:]]
    signs = torch.full((len(stages), 2), _NOT_STARTED).share_memory_()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(stages))]
        # as bytes: else every tensor takes an open file, of which there are not enough
        tasks = [
            pickle.dumps((stage, batches if stage.is_lowest else (), pipeline, file))
            for stage, file in zip(stages, files, strict=True)
        ]
        running = start_processes(  # type: ignore[no-untyped-call]
            _live, (tasks, cuts, signs, started), len(stages), join=False, start_method=method
        )
        try:
            _join(running, signs, pipeline.timeout)
        finally:
            for process in running.processes:
                process.kill()
                process.join()
        stored = [torch.load(file, weights_only=True) for file in files]
    for stage, (_, weights) in zip(stages, stored, strict=True):
        _parts(stage).load_state_dict(weights)
    return [StageReport(**report) for report, _ in stored]


def _join(running: ProcessContext, signs: Tensor, timeout: float) -> None:
    seen = [(sign, time.monotonic()) for sign in signs.tolist()]
    try:
        while not running.join(timeout=_POLL, grace_period=_POLL):
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
    stage, batches, pipeline, file = pickle.loads(tasks[number])
    below = None if stage.is_lowest else cuts[number - 1]
    above = None if stage.is_highest else cuts[number]
    try:
        process = StageProcess(stage, pipeline, below, above, signs[number])
        started.wait()
        report = process.run(batches)
        torch.save((asdict(report), _parts(stage).state_dict()), file)
    except BaseException:
        for cut in cuts:  # else the process waits for readers that may be lost
            cut.up.queue.cancel_join_thread()
            cut.down.queue.cancel_join_thread()
        raise


def _parts(stage: Stage) -> nn.ModuleList:
    return nn.ModuleList([part for part in (stage.section, stage.model) if part is not None])
