"""Weights out of files that somebody else made: tensors and nothing else.

Files of torch are pickles. They are read by torch's restricted unpickler, which builds tensors and
containers and calls nothing that a file names. Of a zip of stable-baselines3 only ``policy.pth`` is
read; its member ``data`` holds pickled Python objects and is never touched. Nothing is unpacked to
disk.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

T = TypeVar("T")

_POLICY = "policy.pth"
_LARGEST = 2**28  # bytes; a DQN's policy.pth, two networks, has 13 MB
_UNREADABLE = (
    RuntimeError,  # among others what torch and encrypted zips raise; NotImplementedError is one
    pickle.UnpicklingError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Args:
        path: A ``.zip`` of stable-baselines3, a ``.safetensors`` file, or, whatever its name ends
            with, a state dict that was written by ``torch.save``.

    Returns:
        Tensors on the CPU, by the names that the file gives them.

    Raises:
        ValueError: If there is no such file, it is damaged or of another format, it holds anything
            but tensors, or it is a zip with a path outside of itself or without a policy.
    """
    if not path.is_file():
        raise ValueError(f"source must be an existing file, got {str(path)!r}")
    if path.suffix == ".zip":
        return _tensors(_from_archive(path), f"{_POLICY} in {path}")
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    with path.open("rb") as file:
        return _tensors(_from_torch(file, str(path)), str(path))


def _from_archive(path: Path) -> Any:
    _check_members(_reading(path, zipfile.ZipFile.infolist), path)
    policy = _reading(path, lambda archive: archive.read(_POLICY))
    return _from_torch(io.BytesIO(policy), f"{_POLICY} in {path}")


def _reading(path: Path, read: Callable[[zipfile.ZipFile], T]) -> T:
    try:
        with zipfile.ZipFile(path) as archive:
            return read(archive)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} must be a whole zip of stable-baselines3, got one that is truncated, damaged "
            f"or no zip ({error})"
        ) from error


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    for member in members:
        if _leads_outside(member.filename):
            raise ValueError(
                f"{path} must hold paths inside itself only, got the member {member.filename!r}"
            )
    sizes = {member.filename: member.file_size for member in members}
    if _POLICY not in sizes:
        # the last zip in a truncated one may be a whole member, with members of its own
        raise ValueError(
            f"{path} must hold a {_POLICY}, got the members {sorted(sizes)[:10]}: it is truncated "
            "or stable-baselines3 did not save it"
        )
    if sizes[_POLICY] > _LARGEST:
        raise ValueError(
            f"{_POLICY} in {path} must have at most {_LARGEST} bytes, got {sizes[_POLICY]}"
        )


def _leads_outside(name: str) -> bool:
    posix = PurePosixPath(name.replace("\\", "/"))
    return posix.is_absolute() or ".." in posix.parts or bool(PureWindowsPath(name).drive)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, *_UNREADABLE) as error:
        raise ValueError(
            f"{path} must be a whole safetensors file, got one that is truncated, damaged or of "
            f"another format ({error})"
        ) from error
    return weights


def _from_torch(file: IO[bytes], name: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch explains how to lift the restriction, which is the wrong advice here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name} must be a whole state dict saved by torch, got one that is truncated, damaged "
            f"or holds more than tensors ({reason})"
        ) from error


def _tensors(content: Any, name: str) -> dict[str, Tensor]:
    found = type(content).__name__
    if isinstance(content, Mapping):
        others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        if not others:
            return {str(key): value for key, value in content.items()}
        found = f"a {found} with {', '.join(others[:5])}"
    raise ValueError(f"{name} must be a state dict, names to tensors, got {found}")
