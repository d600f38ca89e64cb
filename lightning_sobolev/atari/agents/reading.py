"""Weights out of files that somebody else made: tensors and nothing else.

Files of torch are pickles. They are read by torch's restricted unpickler, which builds tensors and
containers and calls nothing that a file names. Of a zip of stable-baselines3 only ``policy.pth`` is
read; its member ``data`` holds pickled Python objects and is never touched. Nothing is unpacked to
disk. A zip's checksums are compared, which torch does not do, and no file makes a reader take more
memory than it may have, whatever sizes it claims.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

_POLICY = "policy.pth"
_LARGEST = 2**28  # bytes; a DQN's policy.pth, two networks, has 13 MB
_CHUNK = 2**16
_ZIP = b"PK\x03\x04"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Args:
        path: A ``.zip`` of stable-baselines3, a ``.safetensors`` file, or, whatever its name ends
            with, a state dict that was written by ``torch.save``.

    Returns:
        Tensors by the names that the file gives them.

    Raises:
        ValueError: If there is no such file, it is damaged or of another format, it holds anything
            but tensors, or it is a zip with a path outside of itself or without a policy.
    """
    if not path.is_file():
        raise ValueError(f"source must be an existing file, got {str(path)!r}")
    if path.suffix == ".zip":
        return _from_torch(_policy_in(path), f"{_POLICY} in {path}")
    _check_size(path.stat().st_size, str(path))
    if path.suffix == ".safetensors":
        with _named(f"{path} must be a whole safetensors file"):
            weights: dict[str, Tensor] = load(path.read_bytes())
        return weights
    return _from_torch(path.read_bytes(), str(path))


@contextmanager
def _named(expected: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file makes readers raise nearly everything
        # torch explains how to lift its restriction, which is the wrong advice here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{expected}, got one that is truncated, damaged or of another kind ({reason})"
        ) from error


def _check_size(size: int, name: str) -> None:
    if size > _LARGEST:
        raise ValueError(f"{name} must have at most {_LARGEST} bytes, got {size}")


def _policy_in(path: Path) -> bytes:
    expected = f"{path} must be a whole zip of stable-baselines3"
    with _named(expected), zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    for name in members:
        if _leads_outside(name):
            raise ValueError(f"{path} must hold paths inside itself only, got the member {name!r}")
    if _POLICY not in members:
        # the last zip in a truncated one may be a whole member, with members of its own
        raise ValueError(
            f"{path} must hold a {_POLICY}, got the members {sorted(members)[:10]}: it is "
            "truncated or stable-baselines3 did not save it"
        )
    _check_size(members[_POLICY].file_size, f"{_POLICY} in {path}")
    with _named(expected), zipfile.ZipFile(path) as archive:
        return b"".join(_chunks(archive, members[_POLICY]))


def _leads_outside(name: str) -> bool:
    posix = PurePosixPath(name.replace("\\", "/"))
    return posix.is_absolute() or ".." in posix.parts or bool(PureWindowsPath(name).drive)


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    # Read to the end, where the checksum is compared. Without a length all would be inflated,
    # however much more than the declared size that is, before the rest is cut off.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{member.filename} is neither stored nor deflated")
    with archive.open(member) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _from_torch(content: bytes, name: str) -> dict[str, Tensor]:
    with _named(f"{name} must be a whole state dict saved by torch"):
        if content.startswith(_ZIP):
            _check_zip_of_torch(content)
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return _tensors(weights, name)


def _check_zip_of_torch(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # torch stores its members as they are and gives a reader the size that they declare
        if any(
            member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size
            for member in archive.infolist()
        ):
            raise zipfile.BadZipFile("its members are compressed, which torch never does")
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise zipfile.BadZipFile("its members are larger than itself")
        for member in archive.infolist():
            for _ in _chunks(archive, member):
                pass


def _tensors(content: Any, name: str) -> dict[str, Tensor]:
    found = type(content).__name__
    if isinstance(content, Mapping):
        others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        if not others:
            return {str(key): value for key, value in content.items()}
        found = f"a {found} with {', '.join(others[:5])}"
    raise ValueError(f"{name} must be a state dict, names to tensors, got {found}")
