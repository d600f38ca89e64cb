"""Atoms in extended xyz files: graphs of unequal size, and batches that join them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sobolev._checks import require
from lightning_sobolev.label_files.damage import optional, reading, require_key
from lightning_sobolev.label_files.formats import PathLike

_OF_NODES = frozenset({"forces", "stresses", "charges", "magmoms", "energies"})
"""What ASE puts into its calculator's results for every atom; the others are of the frame."""

_GEOMETRY = ("pos", "numbers", "cell", "pbc", "batch")

Frame = dict[str, Shaped[Tensor, "..."]]


class LabeledFrames(Dataset[dict[str, Tensor]]):
    r"""Positions, energies, forces and other labels of the frames of an extended xyz file.

    A frame is a dict with ``pos [nodes, 3]``, ``numbers [nodes]``, ``cell [3, 3]``, ``pbc [3]`` and
    the labels. :meth:`collate` joins frames of any sizes into one flat batch::

        DataLoader(frames, batch_size=8, shuffle=True, collate_fn=frames.collate)

    It has ``pos`` and labels of atoms as ``[nodes, ...]``, ``cell``, ``pbc`` and labels of frames
    as ``[graphs, ...]``, and ``batch [nodes]``, the number of every node's graph. Whether a label
    is one of atoms or of frames is as the file has it. A label named ``stress`` is ``[3, 3]``, also
    where the file has the six numbers of Voigt (xx, yy, zz, yz, xz, xy).

    A label that a frame lacks is NaN there, which means "not known". Units and signs are the
    file's: forces are minus the derivative of the energy.

    All frames are parsed once and kept in memory: about 0.1 ms for a frame of ten atoms.

    Args:
        file: Path of the file.
        keys: Which of the file's properties is which in the batch, e.g. ``{"energy": "REF_energy",
            "vs": "vs", "hessian_col": "hessian_col"}``. The last two are a random direction and
            the Hessian's product with it, for ``DirectionalTeacher``.
        rows: A part of the frames.
        dtype: Of positions, cells and labels.

    Raises:
        ValueError: If the file is damaged, or a label is in no frame, or has several shapes, or is
            Inf; names file, frame and key, what was expected and what came.
        ModuleNotFoundError: Without ASE.
    """

    def __init__(
        self,
        file: PathLike,
        keys: Mapping[str, str] | None = None,
        *,
        rows: slice | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        keys = {"energy": "energy", "forces": "forces"} if keys is None else dict(keys)
        taken = [name for name in keys if name in _GEOMETRY]
        require(not taken, "keys", f"no names of the geometry, {list(_GEOMETRY)}", taken)
        require(dtype.is_floating_point, "dtype", "floating", dtype)
        self._path = Path(file)
        frames = self._parsed(rows)
        labels = {name: self._label(frames, name, key) for name, key in keys.items()}
        self._of_nodes = {"pos", "numbers"} | {name for name, (of, _) in labels.items() if of}
        self._frames: list[Frame] = []
        for number, atoms in enumerate(frames):
            arrays = {"pos": atoms.positions, "cell": atoms.cell.array}
            arrays |= {name: found[number] for name, (_, found) in labels.items()}
            frame = {name: self._tensor(name, a, number, dtype) for name, a in arrays.items()}
            whole = {"numbers": torch.tensor(atoms.numbers), "pbc": torch.tensor(atoms.pbc)}
            self._frames.append(frame | whole)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, row: int) -> Frame:
        return dict(self._frames[row])

    def collate(self, frames: Sequence[Frame]) -> Frame:
        """Join frames into a flat batch; the ``collate_fn`` of a ``DataLoader``.

        Returns:
            Nodes one after another, graphs stacked, and ``batch``.

        Raises:
            ValueError: If there is no frame.
        """
        require(len(frames) > 0, "frames", "at least one", frames)
        columns = {name: [frame[name] for frame in frames] for name in frames[0]}
        joined = {
            name: torch.cat(parts) if name in self._of_nodes else torch.stack(parts)
            for name, parts in columns.items()
        }
        sizes = torch.tensor([len(frame["pos"]) for frame in frames])
        return joined | {"batch": torch.repeat_interleave(torch.arange(len(frames)), sizes)}

    def _parsed(self, rows: slice | None) -> list[Any]:
        require(self._path.is_file(), "file", "a file that exists", str(self._path))
        iread = optional("ase.io", "an extended xyz file", "mol").iread
        # The path itself may hold an @, which ASE takes for an index.
        with reading(self._path, "frames in the extended xyz format"), self._path.open() as file:
            frames = list(iread(file, index=":", format="extxyz"))
        found = frames if rows is None else frames[rows]
        some = f"a slice with some of the {len(frames)} frames of {self._path}"
        require(len(found) > 0, "rows", some, rows)
        return found

    def _label(self, frames: list[Any], name: str, key: str) -> tuple[bool, list[np.ndarray]]:
        """Return whether a label is one of nodes, and its array for each frame."""
        found = [_find(atoms, key) for atoms in frames]
        kinds = {
            (of_nodes, np.shape(array)[1:] if of_nodes else np.shape(array))
            for of_nodes, array in (one for one in found if one is not None)
        }
        if not kinds:
            require_key(key, {k for atoms in frames for k in _keys(atoms)}, str(self._path))
        if len(kinds) > 1:
            text = " and ".join(
                f"{list(shape)} of {'an atom' if of else 'a frame'}" for of, shape in sorted(kinds)
            )
            raise ValueError(f"{self._path}[{key!r}] must have one shape in all frames, got {text}")
        of_nodes, shape = next(iter(kinds))
        sizes = [((len(atoms),) if of_nodes else ()) + shape for atoms in frames]
        arrays = [
            np.full(size, np.nan) if one is None else self._numbers(one[1], key, number)
            for number, (one, size) in enumerate(zip(found, sizes, strict=True))
        ]
        if name == "stress" and not of_nodes:
            arrays = [self._matrix(array, key) for array in arrays]
        return of_nodes, arrays

    def _numbers(self, array: Any, key: str, number: int) -> np.ndarray:
        found = np.asarray(array)
        if found.dtype.kind not in "fiub":
            where = f"{self._path}[{key!r}] in frame {number}"
            raise ValueError(f"{where} must be real numbers, got {array!r}")
        return found.astype(np.float64)

    def _matrix(self, stress: np.ndarray, key: str) -> np.ndarray:
        if stress.size == 9:
            return stress.reshape(3, 3)
        if stress.size != 6:
            where = f"{self._path}[{key!r}]"
            raise ValueError(f"{where} must be 6 or 9 numbers, got {list(stress.shape)}")
        xx, yy, zz, yz, xz, xy = stress.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])

    def _tensor(self, name: str, array: np.ndarray, number: int, dtype: torch.dtype) -> Tensor:
        found = torch.tensor(array).to(dtype)
        if found.isinf().any() or (name in _GEOMETRY and found.isnan().any()):
            expected = "finite" if name in _GEOMETRY else "finite, or NaN where not known,"
            where = f"{self._path}, {name!r} in frame {number}"
            raise ValueError(f"{where} must be {expected} as {dtype}, got {found.tolist()}")
        return found


def _find(atoms: Any, key: str) -> tuple[bool, Any] | None:
    """Return whether a property is one of atoms, and its value; None where there is none."""
    results = {} if atoms.calc is None else atoms.calc.results
    if key in results:
        return key in _OF_NODES, results[key]
    if key in atoms.arrays:
        return True, atoms.arrays[key]
    return (False, atoms.info[key]) if key in atoms.info else None


def _keys(atoms: Any) -> list[str]:
    results = {} if atoms.calc is None else atoms.calc.results
    return [*results, *atoms.arrays, *atoms.info]
