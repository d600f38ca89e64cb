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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from lightning_sobolev._checks import require

_LARGEST = 2**28  # bytes; a DQN's policy.pth, two networks, has 13 MB
_UNSAFE = "it is no pickle of tensors and containers alone"
_KINDS = {".zip": "zip of stable-baselines3", ".safetensors": "safetensors file"}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict by the file's ending, torch's where it is none that is known."""
    require(path.is_file(), "source", "an existing file", str(path))
    try:
        content = _content(path)
    except Exception as error:  # a damaged file makes readers raise nearly everything
        # torch explains how to lift its restriction, which is the wrong advice here
        reason, *_ = [*str(error).strip().splitlines(), type(error).__name__]
        reason = _UNSAFE if "weights_only" in reason else reason
        raise ValueError(
            f"{path} must be a whole {_KINDS.get(path.suffix, 'state dict saved by torch')}, "
            f"got one that is truncated, damaged or of another kind ({reason})"
        ) from error
    found = type(content).__name__
    if isinstance(content, Mapping):
        others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        if not others:
            return {str(key): value for key, value in content.items()}
        found = f"a {found} with {', '.join(others[:5])}"
    raise ValueError(f"{path} must be a state dict, names to tensors, got {found}")


def _content(path: Path) -> Any:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("policy.pth")
            _check_size(member.file_size)
            content = b"".join(_chunks(archive, member))
    else:
        _check_size(path.stat().st_size)
        content = path.read_bytes()
    if path.suffix == ".safetensors":
        return load(content)
    if content.startswith(b"PK\x03\x04"):
        _check_zip_of_torch(content)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise ValueError(f"the weights must have at most {_LARGEST} bytes, got {size}")


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    # Read to the end, where the checksum is compared. Without a length all would be inflated,
    # however much more than the declared size that is, before the rest is cut off.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{member.filename} is neither stored nor deflated")
    with archive.open(member) as file:
        while chunk := file.read(2**16):
            yield chunk


def _check_zip_of_torch(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        # torch stores its members as they are and gives a reader the size that they declare
        if any(one.compress_type or one.compress_size != one.file_size for one in members):
            raise zipfile.BadZipFile("its members are compressed, which torch never does")
        if sum(member.file_size for member in members) > len(content):
            raise zipfile.BadZipFile("its members are larger than itself")
        for member in members:
            for _ in _chunks(archive, member):
                pass
