"""Arrays that stay in numpy's files until rows of them are asked for.

Nothing is held open between two reads: what describes an array goes through a pickle and a fork as
it is, and every worker of a loader opens the file for itself.
"""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lightning_sobolev.label_files.damage import reading

Rows = slice | Int[np.ndarray, " batch"]

NPZ = "an npz file as numpy.savez writes"
NPY = "an npy file as numpy.save writes"


@dataclass(frozen=True)
class StoredArray(ABC):
    """An array ``[rows, ...]`` in a file."""

    path: Path
    key: str
    shape: tuple[int, ...]

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self.path}[{self.key!r}]"

    @abstractmethod
    def read(self, rows: Rows) -> Shaped[Tensor, "batch *rest"]:
        """Return rows as they are in the file; slices have a positive step."""


@dataclass(frozen=True)
class MappedArray(StoredArray):
    """Numbers that lie in the file one after another, whatever surrounds them."""

    offset: int
    dtype: np.dtype
    order: str

    def mapped(self) -> np.memmap:
        """Return the array as a memory map, which reads nothing yet."""
        with reading(self.path, f"a whole file with {self.key!r} of shape {list(self.shape)}"):
            place = {"mode": "r", "offset": self.offset}
            return np.memmap(self.path, self.dtype, shape=self.shape, order=self.order, **place)  # type: ignore[call-overload, no-any-return]

    def read(self, rows: Rows) -> Shaped[Tensor, "batch *rest"]:
        """Copy rows out of the memory map."""
        return as_tensor(self.mapped()[rows], self.where)


@dataclass(frozen=True)
class NpzMember(StoredArray):
    """A member of an npz file, compressed or not, which is read whole and against its checksum."""

    def read(self, rows: Rows) -> Shaped[Tensor, "batch *rest"]:
        """Read the whole array and return rows of it."""
        with reading(self.path, NPZ), np.load(self.path, allow_pickle=False) as file:
            array = file[self.key]
        return as_tensor(array[rows], self.where)


def npz_keys(path: Path) -> list[str]:
    """Return the names of the arrays of an npz file."""
    with reading(path, NPZ), zipfile.ZipFile(path) as file:
        return [name.removesuffix(".npy") for name in file.namelist()]


def npz_array(path: Path, key: str, lazy: bool) -> StoredArray:
    """Return one array of an npz file.

    Raises:
        ValueError: If the file is damaged, or ``lazy`` and the array compressed.
    """
    with reading(path, NPZ), zipfile.ZipFile(path) as file:
        info = file.getinfo(f"{key}.npy")
        with file.open(info) as member:
            shape, dtype, order, header = _header(member)
        start = _start(path, info)
    _refuse_objects(dtype, f"{path}[{key!r}]")
    if not lazy:
        return NpzMember(path, key, shape)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{path}[{key!r}] must be stored uncompressed to be read with lazy=True, got a "
            "compressed array: write it with numpy.savez, or say lazy=False"
        )
    return MappedArray(path, key, shape, start + header, dtype, order)


def npy_array(path: Path, key: str, lazy: bool) -> StoredArray:
    """Return the array of an npy file, which is mapped into memory in either case."""
    del lazy
    with reading(path, NPY), path.open("rb") as file:
        shape, dtype, order, header = _header(file)
    _refuse_objects(dtype, str(path))
    return MappedArray(path, key, shape, header, dtype, order)


def as_tensor(array: np.ndarray, where: str) -> Tensor:
    """Copy numbers into a tensor, in the byte order of this machine."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where} must be an array of real numbers, got dtype {array.dtype}")
    # Wider floats than torch has, and the other byte order, are those of other programs.
    kind = array.dtype if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    return torch.from_numpy(np.array(array, dtype=kind.newbyteorder("=")))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, str, int]:
    """Read an npy header: shape, type, order, and the place of the numbers behind it."""
    version = np.lib.format.read_magic(file)
    readers: dict[tuple[int, int], Callable[[IO[bytes]], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # what names of fields in Unicode need
        raise ValueError(f"npy format {version}, which holds no plain numbers")
    shape, is_fortran, dtype = readers[version](file)
    return shape, dtype, "F" if is_fortran else "C", file.tell()


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin: only the header before them says how long it is."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
    # APPNOTE.TXT of the zip format, 4.3.7: the lengths of the name and of the extra field.
    return (
        info.header_offset + 30 + sum(int.from_bytes(local[n : n + 2], "little") for n in (26, 28))
    )


def _refuse_objects(dtype: np.dtype, where: str) -> None:
    if dtype.hasobject:
        raise ValueError(f"{where} must be an array of real numbers, got dtype {dtype}")
