"""Arrays of files as a data set of inputs, values and derivatives."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sobolev._checks import require
from lightning_sobolev.label_files.layout import STANDARD, axes_of, names_in
from lightning_sobolev.label_files.sources import Rows, Source, check_scale, find


@dataclass(frozen=True)
class Column:
    """An array of a file on its way into batches."""

    source: Source
    dtype: torch.dtype
    axes: tuple[int, ...] | None
    scale: float
    is_smooth: bool
    is_derivative: bool

    def converted(self, found: Tensor, rows: Rows) -> Tensor:
        """Return rows of the file in the type, the orientation and the unit of the batch."""
        if found.is_complex() or (self.is_smooth and not found.is_floating_point()):
            kind = "floating" if self.is_smooth else "real"
            raise ValueError(f"{self.source.where} must be {kind}, got {found.dtype}")
        if found.is_floating_point():
            found = found.to(self.dtype)
        if self.is_smooth:
            self._check_numbers(found, rows)
        found = found if self.axes is None else found.permute(0, *self.axes)
        return found if self.scale == 1.0 else found * self.scale

    def _check_numbers(self, found: Tensor, rows: Rows) -> None:
        bad = found.isinf() if self.is_derivative else ~found.isfinite()
        if not bool(bad.any()):
            return
        first = int(bad.nonzero()[0, 0])
        row = first + rows.start if isinstance(rows, slice) else rows[first]
        expected = "without Inf" if self.is_derivative else "finite"
        got = f"{float(found[bad][0])} in row {row}"
        raise ValueError(f"{self.source.where} must be {expected} as {found.dtype}, got {got}")


class LabelFile(Dataset[dict[str, Tensor]]):
    r"""Inputs, values and derivatives of a data set, from the files that have them.

    A data set of dicts for ``DataLoader``: ``{"x": ..., "y": ..., "jacobian": ...}``, whose
    derivatives ``BatchTeacher("jacobian")`` reads. Files are ``.npz``, ``.npy``, a folder of
    ``.npy``, HDF5 (``.h5``, ``.hdf5``) and ``.safetensors``. Nothing is unpickled.

    Names, numbers of rows, types and shapes are checked when it is made. Every number is checked
    where it is read: NaN in derivatives means "not known", Inf is refused, and so are both in what
    is differentiated. Indexing with an int gives a row, with a slice or several rows a batch.

    With ``lazy=True`` memory does not grow with the files: a batch costs its own rows, and for each
    array an opening, 0.2 ms of one core. npz and npy are mapped into memory, without npz's
    checksum. HDF5 decompresses whole chunks: store large arrays uncompressed or with chunks of one
    row. Between two reads nothing is open, so any number of workers may share it.

    Args:
        files: A path, or several whose keys differ.
        keys: Which array of the files is which in the batch: ``{"x": "m_data"}``. Keys of an npy
            file are its name without the suffix, of HDF5 paths as ``"train/m"``.
        layout: Axes of derivatives after their rows, by names in the batch: ``"y x"`` is a
            Jacobian of y with respect to x, ``"y x x"`` a Hessian, which ``jacobian`` and
            ``hessian`` are if nothing is said. ``"x y -> y x"`` is a file with
            ``[rows, *in, *out]``; no shape tells where both are the same. Axes of the first one in
            the batch, the output, may be missing where it is a single number.
        scale: What arrays are multiplied with: -1 makes the gradient of an energy of forces.
        dtype: Of floating-point arrays in the batch. Others, e.g. masks, keep their own.
        lazy: Whether rows stay on the disk until they are asked for. Otherwise all are read now.

    Raises:
        ValueError: If a file, a key, a shape or a number is not what it must be; names file, key,
            what was expected and what came.

    Example:
        >>> import numpy, tempfile
        >>> x, path = numpy.linspace(0.0, 1.0, 5)[:, None], f"{tempfile.mkdtemp()}/square.npz"
        >>> numpy.savez(path, x=x, y=x**2, dydx=2 * x[:, None])
        >>> data = LabelFile(path, {"x": "x", "y": "y", "jacobian": "dydx"})
        >>> data[2]["jacobian"]
        tensor([[1.]])
    """

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        keys: Mapping[str, str],
        *,
        layout: Mapping[str, str] | None = None,
        scale: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
        lazy: bool = False,
    ) -> None:  # fmt: skip
        require(bool(keys), "keys", "a mapping from names in the batch to keys", keys)
        require(dtype.is_floating_point, "dtype", "floating", dtype)
        layout = {name: STANDARD[name] for name in STANDARD if name in keys} | dict(layout or {})
        scale = scale or {}
        check_scale(scale)
        smooth = {"x", "y", *layout, *names_in(layout)}
        missing = sorted({*layout, *names_in(layout), *scale} - set(keys))
        require(not missing, "keys", f"names of {missing} too, for layout and scale", list(keys))
        paths = [files] if isinstance(files, str | os.PathLike) else files
        stored = find([Path(path) for path in paths], keys.values(), lazy=lazy)
        opened = {name: stored[key].opened() for name, key in keys.items()}
        sources = {name: source for name, (source, _) in opened.items()}
        self._length = _length(sources)
        axes = {name: axes_of(name, text, sources) for name, text in layout.items()}
        self._columns = {
            name: Column(
                source, dtype, axes.get(name), scale.get(name, 1.0), name in smooth, name in layout
            )
            for name, source in sources.items()
        }
        # One row tells the type of all.
        start = slice(0, self._length)
        found = {name: self._columns[name].converted(x, start) for name, (_, x) in opened.items()}
        self._memory = {} if lazy else found

    def __len__(self) -> int:
        return self._length

    def __getitem__(
        self, rows: int | slice | Sequence[int] | Int[Tensor, " batch"]
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """Return one row of everything, or a batch of several."""
        numbers = np.asarray(range(len(self))[rows] if isinstance(rows, slice) else rows)
        require(numbers.dtype.kind in "iu" or not numbers.size, "rows", "whole numbers", rows)
        wrapped = np.where(numbers < 0, numbers + len(self), numbers).astype(np.int64)
        if ((wrapped < 0) | (wrapped >= len(self))).any():
            raise IndexError(f"rows must be below {len(self)}, got {rows}")
        taken = _range_of(wrapped.reshape(-1))
        batch = {name: self._read(name, taken) for name in self._columns}
        return {name: column[0] for name, column in batch.items()} if numbers.ndim == 0 else batch

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the rows of a batch, read together; ``DataLoader`` asks here."""
        batch = self[list(rows)]
        return [{name: column[n] for name, column in batch.items()} for n in range(len(rows))]

    def _read(self, name: str, rows: Rows) -> Tensor:
        if name in self._memory:
            return self._memory[name][rows if isinstance(rows, slice) else torch.from_numpy(rows)]
        column = self._columns[name]
        return column.converted(column.source.read(rows), rows)


def _range_of(rows: Int[np.ndarray, " batch"]) -> Rows:
    """Return a slice of rows that follow one another, which every file reads faster."""
    if len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _length(sources: Mapping[str, Source]) -> int:
    scalars = [source.where for source in sources.values() if not source.shape]
    require(not scalars, "every array", "[rows, ...]", scalars)
    lengths = {source.where: source.shape[0] for source in sources.values()}
    one = min(lengths.values()) == max(lengths.values()) > 0
    require(one, "files", "arrays of one number of rows", lengths)
    return next(iter(lengths.values()))
