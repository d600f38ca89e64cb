"""Arrays in npz, npy, HDF5 and safetensors files as a data set of inputs, values, derivatives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sobolev._checks import require
from lightning_sobolev.label_files.formats import PathLike, arrays_of
from lightning_sobolev.label_files.shapes import Derivative, check_shape, with_standard
from lightning_sobolev.label_files.stored import Rows, StoredArray

_BLOCK = 2**22
"""Numbers that are looked at together where a whole array is."""

Columns = dict[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True)
class Column:
    """An array of a file on its way into batches."""

    source: StoredArray
    dtype: torch.dtype
    derivative: Derivative | None
    in_ndim: int

    def read(self, rows: Rows) -> Tensor:
        """Read rows in the type, the orientation and the unit of the batch."""
        found = self.source.read(rows)
        if found.is_complex() or (self.derivative and not found.is_floating_point()):
            kind = "floating" if self.derivative else "real"
            raise ValueError(f"{self.source.where} must be {kind}, got {found.dtype}")
        if found.is_floating_point():
            found = found.to(self.dtype)
        return found if self.derivative is None else self.derivative.converted(found, self.in_ndim)


class LabeledArrays(Dataset[dict[str, Tensor]]):
    r"""Inputs, values and derivatives of a data set, from the files that have them.

    A data set of dicts for ``DataLoader``: ``{"x": ..., "y": ..., "jacobian": ...}``, whose
    derivatives ``BatchTeacher("jacobian")`` reads. Names, numbers of rows, types and shapes are
    checked when it is made; so is that inputs and values are finite, for which they are read once,
    in blocks. NaN in derivatives means "not known"; Inf is refused where it is read.

    Files are ``.npz``, ``.npy``, a folder of ``.npy``, HDF5 (``.h5``, ``.hdf5``, ``.hdf``) and
    ``.safetensors``. Arrays of one set may lie in several files. Nothing is unpickled.

    With ``lazy=True`` memory does not grow with the files: each batch costs an opening of each
    (0.02 to 0.1 ms on a local disk) and its own rows. npz members must be uncompressed and npy not
    truncated: they are mapped into memory, without npz's checksum. HDF5 decompresses whole chunks:
    store large arrays uncompressed or with chunks of one row. Between two reads nothing is open, so
    that a data set goes through a fork or a pickle to any number of workers.

    Args:
        files: A path, or several whose keys differ.
        keys: Which array of the files is which in the batch: ``{"x": "m_data"}``. Keys of an npy
            file are its name without the suffix, of HDF5 paths as ``"train/m"``.
        derivatives: What arrays of derivatives belong to, by name in the batch. ``jacobian`` and
            ``hessian`` are those of ``y`` with respect to ``x`` if nothing is said.
        rows: A part of the rows.
        dtype: Of floating-point arrays in the batch. Others, e.g. masks, keep their own.
        lazy: Whether rows stay on the disk until they are asked for. Otherwise all are read now.

    Raises:
        ValueError: If a file, a key, a shape or a number is not what it must be; names file, key,
            what was expected and what came.

    Example:
        >>> import numpy, tempfile
        >>> x, path = numpy.linspace(0.0, 1.0, 5)[:, None], f"{tempfile.mkdtemp()}/square.npz"
        >>> numpy.savez(path, x=x, y=x**2, dydx=2 * x[:, None])
        >>> data = LabeledArrays(path, {"x": "x", "y": "y", "jacobian": "dydx"})
        >>> data[2]["jacobian"]
        tensor([[1.]])
    """

    def __init__(
        self,
        files: PathLike | Sequence[PathLike],
        keys: Mapping[str, str],
        *,
        derivatives: Mapping[str, Derivative] | None = None,
        rows: slice | None = None,
        dtype: torch.dtype = torch.float32,
        lazy: bool = False,
    ) -> None:  # fmt: skip
        require(bool(keys), "keys", "a mapping from names in the batch to keys", keys)
        require(dtype.is_floating_point, "dtype", "floating", dtype)
        given = [files] if isinstance(files, str) or not isinstance(files, Sequence) else files
        stored = arrays_of([Path(file) for file in given], list(keys.values()), lazy=lazy)
        named = {name: stored[key] for name, key in keys.items()}
        belongs = with_standard(derivatives, keys)
        self._rows = _rows(named, rows)
        _check_shapes(named, belongs)
        self._columns = {name: _column(name, named, belongs, dtype) for name in keys}
        # Not only derivatives: what they belong to is differentiated.
        self._smooth = {"x", "y"} & set(keys) | {
            name for d in belongs.values() for name in (*d.inputs, d.of) if name
        }
        self._memory: dict[str, Tensor] = {}
        if not lazy:
            self._memory = {name: self._read(name, slice(None)) for name in keys}
        self._check_finite()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: int | slice | Sequence[int] | Int[Tensor, " batch"]) -> Columns:
        """Return one row of everything, or a batch of several."""
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        numbers = np.asarray(rows)
        require(numbers.dtype.kind in "iu" or not numbers.size, "rows", "whole numbers", rows)
        numbers = numbers.astype(np.int64)
        wrapped = np.where(numbers < 0, numbers + len(self), numbers)
        if ((wrapped < 0) | (wrapped >= len(self))).any():
            raise IndexError(f"rows must be below {len(self)}, got {rows}")
        batch = {name: self._read(name, wrapped.reshape(-1)) for name in self._columns}
        return {name: column[0] for name, column in batch.items()} if numbers.ndim == 0 else batch

    def __getitems__(self, rows: Sequence[int]) -> list[Columns]:
        """Return the rows of a batch, read together; ``DataLoader`` asks here."""
        batch = self[list(rows)]
        return [{name: column[n] for name, column in batch.items()} for n in range(len(rows))]

    def column(self, name: str) -> Tensor:
        """Return one array whole, e.g. for ``Standardizer.fit``.

        Raises:
            ValueError: If there is none of that name.
        """
        require(name in self._columns, "name", f"one of {list(self._columns)}", name)
        return self._read(name, slice(None))

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Go through one array in order, some 16 MB at a time; for statistics of large ones.

        Yields:
            All rows, each once.

        Raises:
            ValueError: If there is none of that name.
        """
        require(name in self._columns, "name", f"one of {list(self._columns)}", name)
        width = max(torch.Size(self._columns[name].source.shape[1:]).numel(), 1)
        step = max(_BLOCK // width, 1)
        for start in range(0, len(self), step):
            yield self._read(name, slice(start, min(start + step, len(self))))

    def _read(self, name: str, places: Rows) -> Tensor:
        """Read places among this set's rows: from memory, or from the file."""
        if name in self._memory:
            return self._memory[name][places if isinstance(places, slice) else torch.tensor(places)]
        column = self._columns[name]
        if isinstance(places, slice):
            part = self._rows[places]
            found = column.read(slice(part.start, part.stop, part.step))
        else:
            found = column.read(self._rows.start + self._rows.step * places)
        if column.derivative is not None:
            self._refuse(found.isinf(), found, name, places, "without Inf")
        return found

    def _check_finite(self) -> None:
        for name in self._columns:
            if name not in self._smooth:
                continue
            start = 0
            for block in self.blocks(name):
                if not block.is_floating_point():
                    where = self._columns[name].source.where
                    raise ValueError(f"{where} must be floating for {name!r}, got {block.dtype}")
                places = slice(start, start + len(block))
                self._refuse(~block.isfinite(), block, name, places, "finite")
                start += len(block)

    def _refuse(self, bad: Tensor, found: Tensor, name: str, places: Rows, expected: str) -> None:
        if not bool(bad.any()):
            return
        first = int(bad.flatten(1).any(1).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
        place = np.arange(len(self))[places][first]
        value = float(found[first][bad[first]].flatten()[0])
        raise ValueError(
            f"{self._columns[name].source.where} must be {expected} as {found.dtype}, "
            f"got {value} in row {self._rows[int(place)]}"
        )


def _rows(named: Mapping[str, StoredArray], rows: slice | None) -> range:
    scalars = [source.where for source in named.values() if not source.shape]
    require(not scalars, "every array", "[rows, ...]", scalars)
    lengths = {source.where: source.shape[0] for source in named.values()}
    require(len(set(lengths.values())) == 1, "files", "arrays of one number of rows", lengths)
    every = range(next(iter(lengths.values())))
    taken = every if rows is None else every[rows]
    fits = len(taken) > 0 and taken.step > 0
    require(fits, "rows", f"a forward slice with some of {len(every)} rows", rows)
    return taken


def _column(
    name: str, named: Mapping[str, StoredArray], belongs: Mapping[str, Derivative],
    dtype: torch.dtype,
) -> Column:  # fmt: skip
    derivative = belongs.get(name)
    inputs = () if derivative is None else derivative.inputs
    return Column(named[name], dtype, derivative, sum(len(named[wrt].shape) - 1 for wrt in inputs))


def _check_shapes(named: Mapping[str, StoredArray], derivatives: Mapping[str, Derivative]) -> None:
    shapes = {name: source.shape for name, source in named.items()}
    for name, derivative in derivatives.items():
        check_shape(name, named[name].where, derivative, shapes)
