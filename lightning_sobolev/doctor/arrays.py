"""Arrays of numbers from an ``.npz`` file; nothing in it is unpickled."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_sobolev.label_files.sources import reading


def read_arrays(
    path: Path, keys: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Read arrays in float64.

    Args:
        path: The file.
        keys: Key of each array in the file, by what it is.
        optional: The same of arrays that may be missing.

    Returns:
        The arrays, by what they are.

    Raises:
        ValueError: If it is no ``.npz`` file, lacks a key, or an array is not one of numbers.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as raw:
        with reading("the file", "an .npz file of arrays"):
            file = np.load(raw, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("must be an .npz file of several arrays, got a single one (.npy)")
        with file:
            present = {name: key for name, key in (optional or {}).items() if key in file.files}
            return {name: _array(file, name, key) for name, key in {**keys, **present}.items()}


def _array(file: "np.lib.npyio.NpzFile", name: str, key: str) -> Tensor:
    if key not in file.files:
        option = name.replace("_", "-")
        raise ValueError(
            f"{name} must be one of the arrays {file.files}, got {key!r}; --{option} KEY"
        )
    with reading(key, "an array of numbers"):  # sums are compared here, and objects refused
        array = np.asarray(file[key])
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise ValueError(f"{key} must be an array of numbers, got {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.float64))
