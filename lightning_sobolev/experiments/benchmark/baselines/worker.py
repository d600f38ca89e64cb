"""One fit in a process of its own: what it takes can be limited, and it can be stopped."""

import logging
import multiprocessing
import resource
import signal
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from lightning_sobolev.experiments.benchmark.baselines.networks import METHODS
from lightning_sobolev.experiments.benchmark.baselines.problems import Problem

_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a fit may take.

    Args:
        seconds: Processor time of data, fit and prediction together.
        gib: Address space of the process.
    """

    seconds: float
    gib: float


def measure(problem: Problem, method: str, *, budget: float) -> dict[str, float]:
    """Fit and predict.

    Args:
        problem: The points.
        method: A key of ``METHODS``.
        budget: Processor seconds of a training that has no end of its own.

    Returns:
        ``rmse`` of the value at the test points, in deviations of the function there; processor
        seconds of the fit, and of predicting 2,000 points.
    """
    table, test = problem.table(), problem.test_table()
    # Not process_time: under a limit of processor time its clock moves in steps of milliseconds.
    began = time.thread_time()
    predict = METHODS[method](table, problem.seed, budget)
    fitted = time.thread_time()
    found = predict(test["x"])
    predicted = time.thread_time()
    error = (found - test["y"]).square().mean().sqrt() / test["y"].std(correction=0)
    return {
        "rmse": float(error),
        "fit_seconds": fitted - began,
        "predict_seconds": predicted - fitted,
    }


def measure_apart(
    problem: Problem, method: str, *, budget: float, limits: Limits
) -> dict[str, Any]:
    """Do the same in a child process, within limits.

    Args:
        problem: The points.
        method: A key of ``METHODS``.
        budget: See :func:`measure`.
        limits: What the child may take.

    Returns:
        ``outcome``: ``fitted``, with the numbers; ``time`` or ``memory``, the limit that was met;
        or ``failed``, with the ``error``.
    """
    # A server that has imported everything once: a child then starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, problem, method, budget, limits))
    child.start()
    sender.close()
    try:
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        answer = {}
    child.join()
    if child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"outcome": "time"}
    return answer or {"outcome": "failed", "error": f"exit code {child.exitcode}"}


def _child(
    sender: Connection, problem: Problem, method: str, budget: float, limits: Limits
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    memory = int(limits.gib * _GIB)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # The soft limit ends the process by a signal that the parent can tell from others.
    seconds = int(time.process_time() + limits.seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    try:
        sender.send({"outcome": "fitted", **measure(problem, method, budget=budget)})
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError) or "memory" in str(error)
        sender.send({"outcome": "memory" if short else "failed", "error": str(error)})
    except Exception as error:
        sender.send({"outcome": "failed", "error": f"{type(error).__name__}: {error}"})
