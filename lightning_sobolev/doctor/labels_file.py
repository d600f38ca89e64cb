"""Examine the labels in a file: ``python -m lightning_sobolev.doctor labels FILE.npz``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_sobolev.doctor.arrays import read_arrays
from lightning_sobolev.doctor.labels import examine_labels

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
        report = examine_labels(**read_arrays(given.file, keys))
    except (ValueError, OSError) as error:
        print(f"{given.file}: {error}")
        return 2
    print(report.text())
    return 1 if report.is_fault else 0
