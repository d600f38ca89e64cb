"""Arrays in npz, npy, HDF5 and safetensors files, read by rows.

Nothing is held open between two reads: what describes an array goes through a fork or a pickle to
any worker, which opens the file for itself. Nothing is unpickled.
"""

import importlib
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lightning_sobolev._checks import require

Rows = slice | Int[np.ndarray, " batch"]
Opened = tuple[Collection[str], Callable[[str], Any]]
"""Keys of a file, and what gives the array of one: it has a shape, and is indexed by rows."""


@contextmanager
def reading(where: object, expected: str) -> Iterator[None]:
    """Name the file and what it should have been, whatever a parser makes of its bytes."""
    try:
        yield
    except (MemoryError, ModuleNotFoundError):  # not the file's fault
        raise
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where} must be {expected}, got {got}") from error


def require_key(key: str, known: Collection[str], where: str) -> None:
    """Raise and list the keys there are, unless it is one."""
    if key not in known:
        raise ValueError(f"{where} must hold the key {key!r}, got {sorted(known)}")


def optional(module: str, user: str) -> Any:
    """Import a package that only some kinds of files need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        text = f"{user} needs {module}: pip install 'lightning-sobolev[files]'"
        raise ModuleNotFoundError(text) from error


@dataclass(frozen=True)
class Source:
    """An array ``[rows, ...]`` in a file."""

    path: Path
    key: str
    lazy: bool
    shape: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """File and key, for messages."""
        return f"{self.path}[{self.key!r}]"

    def opened(self) -> tuple["Source", Shaped[Tensor, "batch *rest"]]:
        """Return this with its shape, and its rows: the first one if lazy, otherwise all."""
        expected, opener = _format(self.path)
        with reading(self.where, expected), opener(self.path, self.lazy) as (_, get):
            array = get(self.key)
            source = Source(self.path, self.key, self.lazy, tuple(array.shape))
            found = array[: 1 if self.lazy else None] if source.shape else array[()]
        return source, _tensor(found, self.where)

    def read(self, rows: Rows) -> Shaped[Tensor, "batch *rest"]:
        """Return a copy of rows."""
        expected, opener = _format(self.path)
        with reading(self.where, expected), opener(self.path, self.lazy) as (_, get):
            if isinstance(rows, slice):
                found = get(self.key)[rows]
            else:  # HDF5 wants each row once, in the order of the file
                places, back = np.unique(rows, return_inverse=True)
                found = get(self.key)[places][back]
        return _tensor(found, self.where)


def find(paths: Sequence[Path], keys: Collection[str], *, lazy: bool) -> dict[str, Source]:
    """Return every key's array, in the one file that has it.

    Raises:
        ValueError: If a file is damaged or of an unknown kind, or a key in none or several.
    """
    holders: dict[str, list[Path]] = {}
    for path in paths:
        expected, opener = _format(path)
        with reading(path, expected), opener(path, lazy) as (names, _):
            for name in names:
                holders.setdefault(name, []).append(path)
    for key in keys:
        require_key(key, holders, ", ".join(map(str, paths)))
        if len(holders[key]) > 1:
            both = [str(path) for path in holders[key]]
            way = "rows of several sets are joined by torch.utils.data.ConcatDataset"
            raise ValueError(f"files must hold the key {key!r} once, got it in {both}: {way}")
    return {key: Source(holders[key][0], key, lazy) for key in keys}


def check_scale(scale: Mapping[str, float]) -> None:
    """Raise unless all factors are numbers."""
    for name, factor in scale.items():
        is_number = isinstance(factor, int | float) and math.isfinite(factor)
        require(is_number, f"scale[{name!r}]", "a finite number", factor)


def _tensor(found: Any, where: str) -> Tensor:
    if isinstance(found, Tensor):
        return found
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{where} must be real numbers, got dtype {found.dtype}")
    # torch has neither wider floats nor the other byte order.
    kind = found.dtype if found.dtype.itemsize <= 8 else np.dtype(np.float64)
    return torch.from_numpy(np.array(found, dtype=kind.newbyteorder("=")))


@contextmanager
def _npz(path: Path, lazy: bool) -> Iterator[Opened]:
    with zipfile.ZipFile(path) as file:
        keys = [name.removesuffix(".npy") for name in file.namelist()]
        yield keys, partial(_mapped if lazy else _checked, file)


def _checked(file: zipfile.ZipFile, key: str) -> np.ndarray:
    with file.open(f"{key}.npy") as member:
        # Behind its end the checksum is compared.
        found: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _mapped(file: zipfile.ZipFile, key: str) -> np.ndarray:
    info = file.getinfo(f"{key}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a compressed array: write it with numpy.savez, or say lazy=False")
    with file.open(info) as member:
        # Version 3 is for names of fields, which plain numbers lack.
        form, is_first = np.lib.format, np.lib.format.read_magic(member) == (1, 0)
        read = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
        shape, is_fortran, dtype = read(member)
        header = member.tell()
    if dtype.hasobject:  # numpy would map them, and follow their bytes as pointers
        raise ValueError("an array of Python objects")
    path = str(file.filename)
    with open(path, "rb") as raw:
        raw.seek(info.header_offset)
        local = raw.read(30)
    # APPNOTE.TXT of the zip format, 4.3.7: the lengths of the name and of the extra field.
    name, extra = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    begin = info.header_offset + 30 + name + extra + header
    return np.memmap(path, dtype, "r", begin, shape, "F" if is_fortran else "C")


@contextmanager
def _npy(path: Path, lazy: bool) -> Iterator[Opened]:
    del lazy
    files = {file.stem: file for file in ([*path.glob("*.npy")] if path.is_dir() else [path])}
    yield files, lambda key: np.load(files[key], mmap_mode="r", allow_pickle=False)


@contextmanager
def _hdf5(path: Path, lazy: bool) -> Iterator[Opened]:
    del lazy
    with optional("h5py", "an HDF5 file").File(path) as file:
        yield _named_arrays(file), file.__getitem__


def _named_arrays(file: Any) -> list[str]:
    # Every name of an array, links as well; a link to a group is not entered, which may hold it.
    names: list[str] = []
    file.visititems_links(lambda name, _: names.append(name))
    return [name for name in names if hasattr(file.get(name), "shape")]


class _SafeSlice:
    """Indexes a slice of safetensors with row numbers, too."""

    def __init__(self, view: Any) -> None:
        self.shape, self._view = view.get_shape(), view

    def __getitem__(self, rows: Rows) -> Tensor:
        if isinstance(rows, slice):
            found: Tensor = self._view[rows]
            return found
        return torch.cat([self._view[0:0], *(self._view[int(n) : int(n) + 1] for n in rows)])


@contextmanager
def _safe(path: Path, lazy: bool) -> Iterator[Opened]:
    del lazy
    with optional("safetensors", "a safetensors file").safe_open(path, framework="pt") as file:
        yield file.keys(), lambda key: _SafeSlice(file.get_slice(key))


def _format(path: Path) -> "_Format":
    suffix = ".npy" if path.is_dir() else path.suffix.lower()
    if suffix not in _FORMATS:
        hint = ": GraphFile reads extended xyz" if suffix in (".xyz", ".extxyz") else ""
        kinds = f"folders of .npy or end in {', '.join(_FORMATS)}"
        raise ValueError(f"files must be {kinds}, got {str(path)!r}{hint}")
    return _FORMATS[suffix]


_Format = tuple[str, Callable[[Path, bool], AbstractContextManager[Opened]]]
_FORMATS: dict[str, _Format] = {
    ".npz": ("an npz file as numpy.savez writes", _npz),
    ".npy": ("an npy file as numpy.save writes", _npy),
    ".h5": ("an HDF5 file", _hdf5),
    ".hdf5": ("an HDF5 file", _hdf5),
    ".safetensors": ("a safetensors file", _safe),
}
