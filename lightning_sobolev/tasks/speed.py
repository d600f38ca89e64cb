"""How fast states are recorded and served, and how fast a training step takes them."""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from lightning_sobolev.atari import (
    AtariSettings,
    CenteredPolicy,
    RecordedStates,
    Recording,
    SmallCNN,
    StepLoader,
    StepSampler,
    load_agent,
    record,
)
from lightning_sobolev.functional.discrepancies import kl
from lightning_sobolev.tasks.distillation import log_softmax

_MEGABYTE = 1e6


def measure(
    agent: str, *, num_states: int, num_envs: int, batch_size: int = 32, num_batches: int = 300
) -> dict[str, float]:
    """Record with an agent into a folder that is deleted afterwards, and serve what was recorded.

    Args:
        agent: What :func:`~lightning_sobolev.atari.load_agent` takes.
        num_states: States to record.
        num_envs: Games side by side.
        batch_size: States in a batch.
        num_batches: Batches to serve, and steps to train.

    Returns:
        Seconds, rates and sizes, by name. A training step is that of the small student without
        derivatives, which takes states faster than any other.
    """
    teacher, card = load_agent(agent)
    settings = AtariSettings(**{**card["environment"], "num_envs": num_envs})
    numbers: dict[str, float] = {"states": num_states, "memory_before_mb": _peak_memory()}
    with tempfile.TemporaryDirectory() as root:
        with _timed(numbers, "record_seconds"):
            made = record(Path(root) / settings.game, settings, teacher, num_states=num_states)
        numbers["record_states_per_second"] = made.num_states / numbers["record_seconds"]
        numbers["record_memory_mb"] = _peak_memory()
        size = sum(path.stat().st_size for path in made.folder.iterdir())
        numbers["record_megabytes"] = size / _MEGABYTE
        with _timed(numbers, "open_seconds"):
            made = Recording(made.folder)
        batches = _loader(made, batch_size, num_batches)
        with _timed(numbers, "load_seconds"):
            for _ in batches:
                pass
        one = next(iter(batches))
        student = CenteredPolicy(SmallCNN(made.num_actions)) if _fits(settings) else teacher
        with _timed(numbers, "train_seconds"):
            _train(student, one, num_batches)
    for name in ("load", "train"):
        rate = batch_size * num_batches / numbers[f"{name}_seconds"]
        numbers[f"{name}_stacks_per_second"] = rate
    return numbers


def _loader(recording: Recording, batch_size: int, num_batches: int) -> StepLoader:
    states = RecordedStates([recording], np.arange(recording.num_states))
    sampler = StepSampler(len(states), batch_size=batch_size, steps=num_batches, seed=0)
    return StepLoader(states, sampler)


def _fits(settings: AtariSettings) -> bool:
    return (settings.stack_num, settings.img_height, settings.img_width) == (4, 84, 84)


def _train(student: torch.nn.Module, batch: dict[str, torch.Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(student.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        states = batch["x"].to(torch.float32).div_(255)
        loss: torch.Tensor = kl(log_softmax(student(states)), batch["log_probs"]).mean()
        torch.autograd.backward(loss)
        optimizer.step()


@contextmanager
def _timed(numbers: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds on the clock, and those of all processors together: how busy others are."""
    started, worked = time.perf_counter(), time.process_time()
    yield
    numbers[name] = time.perf_counter() - started
    numbers[f"{name}_of_processors"] = time.process_time() - worked


def _peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MEGABYTE if sys.platform == "darwin" else peak * 1024 / _MEGABYTE
