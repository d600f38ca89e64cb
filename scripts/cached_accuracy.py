"""What stored answers of a teacher cost in accuracy: ``python scripts/cached_accuracy.py``.

Distils Pong from 1,562 recorded states with derivatives along fresh cotangents, along one or four
stored ones of each state, and without. Writes ``cached_accuracy.csv``, a line a run. Takes about
three minutes of one core a seed, and two gigabytes in a temporary folder.
"""

import argparse
import logging
import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from lightning_sobolev import (
    CachedTeacher,
    CacheSettings,
    Cosine,
    NetworkTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    cache_answers,
)
from lightning_sobolev._types import Teacher
from lightning_sobolev.atari import (
    AtariSettings,
    CenteredPolicy,
    RecordingDataModule,
    SmallCNN,
    load_agent,
)
from lightning_sobolev.tasks import DistillationModule
from lightning_sobolev.tasks.records import Record, write_csv

DRAWS = (1, 4)


def recorded(folder: Path, network: torch.nn.Module) -> RecordingDataModule:
    """Record the teacher's play."""
    data = RecordingDataModule(
        folder / "recordings", AtariSettings("pong"), network, num_states=1562,
        num_test_states=2000, num_validation_states=128, batch_size=32,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


def stored(folder: Path, data: RecordingDataModule, teacher: NetworkTeacher, draws: int) -> Path:
    """Store the teacher's answers to all recorded states."""

    def inputs(index: Tensor) -> Tensor:
        return torch.from_numpy(data.recording.stacks(index.numpy())).float().div_(255)

    settings = CacheSettings(on="log_softmax", num_draws=draws, dtype="float16")
    count = data.recording.num_states
    return cache_answers(teacher, inputs, count, folder / f"cache{draws}", settings)


def test_kl(data: RecordingDataModule, teacher: Teacher | None, *, seed: int, steps: int) -> float:
    """Train a student and return the KL divergence on the test states."""
    L.seed_everything(seed, verbose=False)
    student = DistillationModule(
        CenteredPolicy(SmallCNN(6)), lr=1e-3 if teacher is None else 2e-3, max_steps=steps
    )
    term = SobolevTerm(rows=0.5, weight=Cosine(0.3, 0.0, steps=steps))
    callbacks: list[L.Callback] = []
    if teacher is not None:
        spec = SobolevSpec(on="log_softmax", terms=[term])
        callbacks = [SobolevCallback(teacher, spec, module="net", seed=seed, doctor=False)]
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(student, datamodule=data)
    return float(trainer.test(student, datamodule=data, verbose=False)[0]["test/kl"])


def main() -> None:
    """Read the command line, train, print a line a run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    network, _ = load_agent("pong")
    teacher = NetworkTeacher(network)
    with tempfile.TemporaryDirectory() as near:
        data = recorded(Path(near), network)
        ways: dict[str, Teacher | None] = {"values only": None, "fresh directions": teacher}
        for draws in DRAWS:
            ways[f"{draws} stored"] = CachedTeacher(stored(Path(near), data, teacher, draws))
        run = partial(test_kl, data, steps=given.steps)
        records: list[Record] = []
        for seed in given.seeds:
            for name, way in ways.items():
                kl = run(way, seed=seed)
                print(f"{name:>20} seed {seed} test KL {kl:.5f}", flush=True)
                records.append(
                    {"directions": name, "seed": seed, "steps": given.steps, "test_kl": kl}
                )
    write_csv(given.out / "cached_accuracy.csv", list(records[0]), records)


if __name__ == "__main__":
    main()
