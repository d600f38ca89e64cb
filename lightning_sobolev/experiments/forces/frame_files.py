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
from lightning_sobolev.experiments.forces.systems import Frames, atomic_system, simulate

log = logging.getLogger(__name__)


def stored_frames(root: Path, system: str, num_frames: int, *, seed: int) -> Frames:
    """Read the frames of one trajectory; simulate and store them if they are not there.

    Args:
        root: Folder of the files.
        system: Name of the system.
        num_frames: Length of the trajectory.
        seed: Of its thermal noise.

    Returns:
        The frames.

    Raises:
        ValueError: If a file is damaged or was made with other settings.
    """
    settings = _settings(system, num_frames, seed)
    path = root / f"{system}_{num_frames}_{seed}.safetensors"
    if not path.is_file():
        log.info("simulating %d frames of %s: %s", num_frames, system, path)
        _write(path, simulate(atomic_system(system), num_frames, seed=seed), settings)
    return _read(path, settings)


def _settings(system: str, num_frames: int, seed: int) -> str:
    facts = asdict(atomic_system(system))
    facts["build"] = system
    return json.dumps({**facts, "num_frames": num_frames, "seed": seed}, sort_keys=True)


def _write(path: Path, frames: Frames, settings: str) -> None:
    columns = {name: tensor.contiguous() for name, tensor in asdict(frames).items()}
    metadata = {"settings": settings, "sha256": _digest(columns)}
    with whole(path) as writing:
        save_file(columns, writing, metadata=metadata)


def _read(path: Path, settings: str) -> Frames:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} must be a file of frames, got {error}: delete it") from error
    if metadata.get("settings") != settings:
        raise ValueError(
            f"{path} must hold frames made with {settings}, got {metadata.get('settings')}: "
            "delete it"
        )
    if (found := _digest(columns)) != metadata.get("sha256"):
        raise ValueError(
            f"{path} must have the checksum {metadata.get('sha256')}, got {found}: delete it"
        )
    return Frames(**columns)


def _digest(columns: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(name.encode())
        digest.update(columns[name].numpy().tobytes())
    return digest.hexdigest()
