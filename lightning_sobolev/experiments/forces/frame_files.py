"""Simulated frames on disk: made on first use, whole, and known by a checksum."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.forces.systems import atomic_system, simulate

log = logging.getLogger(__name__)


def stored_frames(root: Path, name: str, num_frames: int, *, seed: int) -> dict[str, Tensor]:
    """Read the frames of one trajectory; simulate and store them if they are not there."""
    system = atomic_system(name)
    facts = {**asdict(system), "build": name, "num_frames": num_frames, "seed": seed}
    settings = json.dumps(facts, sort_keys=True)
    path = root / f"{name}_{num_frames}_{seed}.safetensors"
    if not path.is_file():
        log.info("simulating %d frames of %s: %s", num_frames, name, path)
        columns = simulate(system, num_frames, seed=seed)
        with whole(path) as writing:
            save_file(columns, writing, {"settings": settings, "sha256": _digest(columns)})
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            columns = {column: file.get_tensor(column) for column in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} must be a file of frames, got {error}: delete it") from error
    for fact, expected in (("settings", settings), ("sha256", _digest(columns))):
        if (got := found.get(fact)) != expected:
            raise ValueError(f"{path} must have the {fact} {expected}, got {got}: delete it")
    return columns


def _digest(columns: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(name.encode())
        digest.update(columns[name].numpy().tobytes())
    return digest.hexdigest()
