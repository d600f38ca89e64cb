"""Files of a cache of answers: shards that are written whole or not at all.

A cache is a folder of ``cache.json`` (format, and all that decides a byte), ``shard-N.npy`` (one
:meth:`CacheSettings.record` per sample) and ``shard-N.json``, its checksum, written after it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_sobolev._checks import require
from lightning_sobolev._files import sha256_of, whole, write_json
from lightning_sobolev.functional.projections import PROJECTIONS

FORMAT_VERSION = 1
CACHE_FILE = "cache.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """What is stored of each sample.

    Args:
        side: ``"tangent"`` stores J v, as many numbers as there are outputs; ``"cotangent"`` stores
            the row u^T J, as many as there are inputs.
        projection: Law of the directions; no basis for tangents of many inputs.
        num_draws: Directions for each sample, between which training alternates.
        seed: Of the directions.
        on: Name of the output map.
        dtype: In which derivatives are stored, ``"float16"`` beside a factor for each row.
        shard_size: Samples in a file.

    Raises:
        ValueError: If a field is out of its range.
    """

    side: Literal["cotangent", "tangent"] = "cotangent"
    projection: str = "sphere"
    num_draws: int = 1
    seed: int = 0
    on: str = "identity"
    dtype: Literal["float32", "float16"] = "float32"
    shard_size: int = 4096

    def __post_init__(self) -> None:
        choices = {"side": ("cotangent", "tangent"), "projection": PROJECTIONS}
        choices |= {"on": ("identity", "log_softmax", "softmax"), "dtype": ("float32", "float16")}
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, f"one of {allowed}", getattr(self, name))
        for name in ("num_draws", "shard_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))

    def record(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> np.dtype:
        """Return the type of one sample's record."""
        projected = in_shape if self.side == "cotangent" else out_shape
        kind = "<f2" if self.dtype == "float16" else "<f4"
        derivative = ("derivative", kind, (self.num_draws, *projected))
        scale = ("scale", "<f4", (self.num_draws,))
        return np.dtype([("value", "<f4", out_shape), derivative, scale, ("mark", "<f8")])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def write_shard(folder: Path, number: int, records: np.ndarray) -> None:
    """Write one shard, then its checksum, each under its name only when complete."""
    path = _shard(folder, number)
    with whole(path) as writing, writing.open("wb") as file:
        np.save(file, records, allow_pickle=False)
    write_json(path.with_suffix(".json"), {"sha256": sha256_of(path), "samples": len(records)})


def is_written(folder: Path, number: int) -> bool:
    """Whether a shard is complete."""
    path = _shard(folder, number)
    return path.is_file() and path.with_suffix(".json").is_file()


def open_shard(folder: Path, number: int, *, verify: bool) -> np.ndarray:
    """Map a shard into memory."""
    path = _shard(folder, number)
    expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
    if verify and sha256_of(path) != expected:
        raise ValueError(f"{path} must have the checksum {expected[:12]}..., but was changed")
    records: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return records


def claim(folder: Path, content: dict[str, Any]) -> None:
    """Make the folder that of one cache, or find that it is already."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CACHE_FILE).is_file():
        found = read_header(folder)
        if differing := sorted(key for key in content if found.get(key) != content[key]):
            raise ValueError(
                f"folder must be empty or hold the same cache, got {folder} with another "
                f"{', '.join(differing)}: choose another folder or delete this one"
            )
        return
    write_json(folder / CACHE_FILE, {"format": FORMAT_VERSION, **content})


def read_header(folder: Path) -> dict[str, Any]:
    """Read ``cache.json``."""
    path = folder / CACHE_FILE
    if not path.is_file():
        raise ValueError(f"folder must hold a cache, got {folder} without {CACHE_FILE}")
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("format") != FORMAT_VERSION:
        raise ValueError(f"{path} must have format {FORMAT_VERSION}, got {content.get('format')}")
    return content
