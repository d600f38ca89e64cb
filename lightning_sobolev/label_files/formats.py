"""Which kind of file a path is, and the arrays in it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from lightning_sobolev.label_files.damage import optional, reading, require_key
from lightning_sobolev.label_files.stored import (
    Rows,
    StoredArray,
    as_tensor,
    npy_array,
    npz_array,
    npz_keys,
)

PathLike = str | os.PathLike[str]

_HDF5 = "an HDF5 file"
_SAFETENSORS = "a safetensors file"


@dataclass(frozen=True)
class Format:
    """How the names in a file and one of its arrays are found."""

    keys: Callable[[Path], list[str]]
    array: Callable[[Path, str, bool], StoredArray]


@dataclass(frozen=True)
class Hdf5Array(StoredArray):
    """A dataset of an HDF5 file."""

    def read(self, rows: Rows) -> Shaped[Tensor, "batch *rest"]:
        """Read rows; each once, in the order of the file, as HDF5 wants them."""
        places: Rows = rows
        if not isinstance(rows, slice):
            places, back = np.unique(rows, return_inverse=True)
        with reading(self.path, _HDF5), optional("h5py", _HDF5, "files").File(self.path) as file:
            array = file[self.key][places]
        return as_tensor(array if isinstance(rows, slice) else array[back], self.where)


@dataclass(frozen=True)
class SafeArray(StoredArray):
    """A tensor of a safetensors file."""

    def read(self, rows: Rows) -> Shaped[Tensor, "batch *rest"]:
        """Read rows, one after another where they are not a range."""
        with reading(self.path, _SAFETENSORS), _safe_open(self.path) as file:
            view = file.get_slice(self.key)
            if isinstance(rows, slice) and rows.step in (None, 1):
                found: Tensor = view[rows]
                return found
            numbers = range(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
            taken = [view[int(n) : int(n) + 1] for n in numbers]
            return torch.cat(taken) if taken else view[0:0]


def arrays_of(paths: Sequence[Path], keys: Sequence[str], *, lazy: bool) -> dict[str, StoredArray]:
    """Find every key in the one file that has it.

    Returns:
        The arrays by key.

    Raises:
        ValueError: If a file is damaged or of an unknown kind, or a key in none or several.
    """
    formats = {path: format_of(path) for path in paths}
    known = {path: form.keys(path) for path, form in formats.items()}
    found = {}
    for key in keys:
        holders = [path for path in paths if key in known[path]]
        every = {name for names in known.values() for name in names}
        require_key(key, every, ", ".join(map(str, paths)))
        if len(holders) > 1:
            raise ValueError(
                f"files must hold the key {key!r} once, got it in {[str(h) for h in holders]}: "
                "rows of several sets are joined by torch.utils.data.ConcatDataset"
            )
        found[key] = formats[holders[0]].array(holders[0], key, lazy)
    return found


def format_of(path: Path) -> Format:
    """Return how a file is read, by its suffix.

    Raises:
        ValueError: If there is no such file, or its suffix says nothing.
    """
    if not path.exists():
        raise ValueError(f"files must be files or folders that exist, got {str(path)!r}")
    if path.is_dir():
        return Format(_folder_keys, _folder_array)
    suffix = path.suffix.lower()
    if suffix in (".xyz", ".extxyz"):
        raise ValueError(f"files must hold arrays, got {str(path)!r}: LabeledFrames reads frames")
    if suffix not in FORMATS:
        raise ValueError(
            f"files must be folders of .npy or end in {', '.join(FORMATS)}, got {str(path)!r}"
        )
    return FORMATS[suffix]


def _folder_keys(path: Path) -> list[str]:
    return [file.stem for file in sorted(path.glob("*.npy"))]


def _folder_array(path: Path, key: str, lazy: bool) -> StoredArray:
    return npy_array(path / f"{key}.npy", key, lazy)


def _hdf5_keys(path: Path) -> list[str]:
    h5py = optional("h5py", _HDF5, "files")
    found: list[str] = []
    with reading(path, _HDF5), h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
    return found


def _hdf5_array(path: Path, key: str, lazy: bool) -> StoredArray:
    del lazy
    with reading(path, _HDF5), optional("h5py", _HDF5, "files").File(path) as file:
        return Hdf5Array(path, key, tuple(file[key].shape or ()))


def _safe_open(path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return optional("safetensors", _SAFETENSORS, "files").safe_open(path, framework="pt")


def _safe_keys(path: Path) -> list[str]:
    with reading(path, _SAFETENSORS), _safe_open(path) as file:
        return list(file.keys())


def _safe_array(path: Path, key: str, lazy: bool) -> StoredArray:
    del lazy
    with reading(path, _SAFETENSORS), _safe_open(path) as file:
        return SafeArray(path, key, tuple(file.get_slice(key).get_shape()))


_hdf5, _safe = Format(_hdf5_keys, _hdf5_array), Format(_safe_keys, _safe_array)
FORMATS = {
    ".npz": Format(npz_keys, npz_array),
    ".npy": Format(lambda path: [path.stem], npy_array),
    ".h5": _hdf5, ".hdf5": _hdf5, ".hdf": _hdf5,
    ".safetensors": _safe,
}  # fmt: skip
