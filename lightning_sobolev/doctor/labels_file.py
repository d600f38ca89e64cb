"""Examine the labels in a file: ``python -m lightning_sobolev.doctor labels FILE.npz``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_sobolev.doctor.labels import examine_labels
from lightning_sobolev.label_files.sources import reading

_NAMES = ("x", "y", "jacobian")


def main(arguments: Sequence[str]) -> int:
    """Read, examine, print.

    Returns:
        The exit code: 0 without a fault, 1 with one, 2 where the file cannot be examined.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lightning_sobolev.doctor labels",
        description="Say whether stored derivatives look like those of the stored values: wrong "
        "sign, wrong unit, transposed, rows shifted, noisy. Nothing is trained or written.",
        epilog="exit code: 0 no fault found, 1 a fault found, 2 the file cannot be examined",
    )
    parser.add_argument("file", type=Path, help="an .npz file; nothing in it is unpickled")
    shapes = {"x": "[points, *in]", "y": "[points, *out]", "jacobian": "[points, *out, *in]"}
    for name in _NAMES:
        text = f"name of the array {shapes[name]} in the file (default: %(default)s)"
        parser.add_argument(f"--{name}", default=name, metavar="KEY", help=text)
    given = parser.parse_args(arguments)
    keys = {name: getattr(given, name) for name in _NAMES}
    try:
        report = examine_labels(**_arrays(given.file, keys))
    except (ValueError, OSError) as error:
        print(f"{given.file}: {error}")
        return 2
    print(report.text())
    return 1 if report.is_fault else 0


def _arrays(path: Path, keys: dict[str, str]) -> dict[str, Tensor]:
    with path.open("rb") as raw:
        with reading("the file", "an .npz file of arrays"):
            file = np.load(raw, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("must be an .npz file of several arrays, got a single one (.npy)")
        with file:
            return {name: _array(file, name, key) for name, key in keys.items()}


def _array(file: "np.lib.npyio.NpzFile", name: str, key: str) -> Tensor:
    if key not in file.files:
        raise ValueError(
            f"{name} must be one of the arrays {file.files}, got {key!r}; --{name} KEY"
        )
    with reading(key, "an array of numbers"):  # sums are compared here, and objects refused
        array = np.asarray(file[key])
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise ValueError(f"{key} must be an array of numbers, got {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.float64))
