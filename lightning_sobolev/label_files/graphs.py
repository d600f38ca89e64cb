"""Atoms in extended xyz files: graphs of unequal size, and batches that join them."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sobolev._checks import require
from lightning_sobolev.label_files.sources import check_scale, optional, reading, require_key

_GEOMETRY = ("positions", "numbers", "cell", "pbc", "batch")

_SHAPES = {
    "energy": "[graphs]",
    "forces": "[nodes, 3]",
    "stress": "[graphs, 3, 3]",
    "vs": "[nodes, 3]",
    "hessian_col": "[nodes, 3]",
}
"""What labels of these names are; others are as in the first frame."""

_OF_NODES = frozenset({"forces", "stresses", "charges", "magmoms", "energies"})
"""What ASE gives for every atom among a calculator's results; the others are of the frame."""

Graph = dict[str, Shaped[Tensor, "..."]]


class GraphFile(Dataset[dict[str, Tensor]]):
    r"""Positions, energies, forces and other labels of the frames of an extended xyz file.

    A graph is a dict: ``positions [nodes, 3]``, ``numbers [nodes]`` and labels of atoms
    ``[nodes, ...]``; ``cell [1, 3, 3]``, ``pbc [1, 3]`` and labels of frames ``[1, ...]``.
    :func:`graph_collate` joins graphs of any sizes into one flat batch::

        DataLoader(graphs, batch_size=8, shuffle=True, collate_fn=graph_collate)

    Whether a label is one of atoms or of frames is as the file has it. ``energy [graphs]``,
    ``forces``, ``vs`` and ``hessian_col [nodes, 3]`` are checked to be what they are called, and
    so is ``stress [graphs, 3, 3]``, which may be nine numbers, or the six of
    Voigt (xx, yy, zz, yz, xz, xy).
    Units and signs are the file's: forces are minus the derivative of the energy. NaN in a label
    means "not known".

    All frames are parsed once and kept in memory: about 0.2 ms for a frame of ten atoms.

    Args:
        file: Path of the file.
        keys: Which of the file's properties is which in the batch, e.g. ``{"energy": "REF_energy",
            "vs": "vs", "hessian_col": "hessian_col"}``. The last two are a direction and the
            Hessian's product with it, for ``DirectionalTeacher``. Energies and forces if not said.
        scale: What labels are multiplied with: -1 makes the derivative of
            forces of the energy's Hessian.
        dtype: Of positions, cells and labels.

    Raises:
        ValueError: If the file is damaged, or a label is missing in a frame, has another shape or
            is Inf; names file, frame and key, what was expected and what came.
        ModuleNotFoundError: Without ASE.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        keys: Mapping[str, str] | None = None,
        *,
        scale: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        keys = {"energy": "energy", "forces": "forces"} if keys is None else keys
        taken = [name for name in keys if name in _GEOMETRY]
        require(not taken, "keys", f"no names of the geometry, {list(_GEOMETRY)}", taken)
        require(dtype.is_floating_point, "dtype", "floating", dtype)
        scale, shapes = scale or {}, dict(_SHAPES)
        require(set(scale) <= set(keys), "scale", f"factors of {list(keys)}", scale)
        check_scale(scale)
        self._graphs = []
        for number, atoms in enumerate(_frames(Path(file))):
            graph = _graph(atoms, keys, f"frame {number} of {file}", dtype, shapes)
            self._graphs.append(graph | {name: graph[name] * by for name, by in scale.items()})

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, row: int) -> Graph:
        return dict(self._graphs[row])


def graph_collate(graphs: Sequence[Mapping[str, Tensor]]) -> Graph:
    """Join graphs into a flat batch, for ``DataLoader(..., collate_fn=graph_collate)``.

    Args:
        graphs: Dicts with ``positions [nodes, 3]``; all else is ``[nodes, ...]`` or ``[1, ...]``.

    Returns:
        Everything one after another, and ``batch [nodes]``, the number of every node's graph.

    Raises:
        ValueError: If there is no graph, or their keys differ.
    """
    require(len(graphs) > 0, "graphs", "at least one", graphs)
    names = [sorted(graph) for graph in graphs]
    other = next((own for own in names if own != names[0]), names[0])
    require(other == names[0], "graphs", f"dicts with the same keys, {names[0]}", other)
    joined = {name: torch.cat([graph[name] for graph in graphs]) for name in graphs[0]}
    sizes = torch.tensor([len(graph["positions"]) for graph in graphs])
    return joined | {"batch": torch.repeat_interleave(torch.arange(len(graphs)), sizes)}


def _frames(path: Path) -> list[Any]:
    iread = optional("ase.io", "an extended xyz file").iread
    # Not the path, in which ASE takes an @ for an index.
    with reading(path, "frames in the extended xyz format"), path.open() as file:
        text = file.read()
        frames = list(iread(io.StringIO(text), index=":", format="extxyz"))
    require(len(frames) > 0, str(path), "at least one frame", "none")
    # A number that was cut short is still a number.
    require(text.endswith("\n"), str(path), "whole, with a newline at its end", text[-20:])
    return frames


def _graph(
    atoms: Any, keys: Mapping[str, str], where: str, dtype: torch.dtype, shapes: dict[str, str]
) -> Graph:
    """Return a frame's graph; a label whose shape is not in ``shapes`` yet puts it there."""
    graph = {
        "positions": _tensor(atoms.positions, dtype, f"positions in {where}"),
        "numbers": torch.tensor(atoms.numbers),
        "cell": _tensor(atoms.cell.array[None], dtype, f"cell in {where}"),
        "pbc": torch.tensor(atoms.pbc)[None],
    }
    for name in ("positions", "cell"):
        finite = bool(graph[name].isfinite().all())
        require(finite, f"{name} in {where}", "finite", graph[name].tolist())
    for name, key in keys.items():
        is_of_nodes, found = _label(atoms, key, where)
        if name == "stress":
            found = _square(found)
        sizes = ["nodes" if is_of_nodes else "graphs", *map(str, found.shape[1:])]
        shape = f"[{', '.join(sizes)}]"
        expected = shapes.setdefault(name, shape)
        require(shape == expected, f"{key!r} in {where}", f"of shape {expected}", shape)
        graph[name] = _tensor(found, dtype, f"{key!r} in {where}")
    return graph


def _square(stress: np.ndarray) -> np.ndarray:
    """Return six numbers of Voigt or nine of a symmetric matrix as that; others as they are."""
    if stress.shape == (1, 6):
        xx, yy, zz, yz, xz, xy = stress[0]
        return np.array([[[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]])
    if stress.shape != (1, 9):
        return stress
    matrix = stress.reshape(1, 3, 3)
    # Otherwise rows and columns could not be told apart.
    is_symmetric = matrix.dtype.kind in "fiu" and np.allclose(
        matrix, matrix.transpose(0, 2, 1), equal_nan=True
    )
    return matrix if is_symmetric else stress


def _label(atoms: Any, key: str, where: str) -> tuple[bool, np.ndarray]:
    """Return whether a property is one of atoms, and it with one row for each atom or frame."""
    results = {} if atoms.calc is None else atoms.calc.results
    require_key(key, {*results, *atoms.arrays, *atoms.info}, where)
    of_nodes = key in _OF_NODES if key in results else key in atoms.arrays
    found = results[key] if key in results else (atoms.arrays if of_nodes else atoms.info)[key]
    return of_nodes, np.asarray(found) if of_nodes else np.asarray(found)[None]


def _tensor(found: np.ndarray, dtype: torch.dtype, where: str) -> Tensor:
    require(found.dtype.kind in "fiub", where, "real numbers", found.tolist())
    tensor = torch.tensor(found).to(dtype)
    require(not bool(tensor.isinf().any()), where, f"without Inf as {dtype}", tensor.tolist())
    return tensor
