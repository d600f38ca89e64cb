"""One fit in a process of its own: what it takes can be limited, and it can be stopped.

``python -m lightning_sobolev.tasks.peers.worker JSON`` prints a line of JSON.
"""

import json
import logging
import resource
import sys
import time
import warnings
from typing import Any

import torch

from lightning_sobolev.tasks.peers.networks import METHODS
from lightning_sobolev.tasks.peers.problems import Problem

GIB = 2**30


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
    began = time.process_time()
    predict = METHODS[method](table, problem.seed, budget)
    fitted = time.process_time()
    found = predict(test["x"])
    predicted = time.process_time()
    error = (found - test["y"]).square().mean().sqrt() / test["y"].std(correction=0)
    return {
        "rmse": float(error),
        "fit_seconds": fitted - began,
        "predict_seconds": predicted - fitted,
    }


def main(given: dict[str, Any]) -> dict[str, Any]:
    """Measure within limits.

    Args:
        given: ``problem``, ``method``, ``budget``, ``limit_seconds`` and ``limit_gib``.

    Returns:
        An ``outcome`` and, if it is ``fitted``, the numbers.
    """
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    memory = int(given["limit_gib"] * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # The soft limit ends the process by a signal that the parent can tell from others.
    seconds = int(time.process_time() + given["limit_seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    try:
        numbers = measure(Problem(**given["problem"]), given["method"], budget=given["budget"])
    except MemoryError:
        return {"outcome": "memory"}
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return {"outcome": "memory"}
    return {"outcome": "fitted", **numbers}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(json.loads(sys.argv[1]))))
