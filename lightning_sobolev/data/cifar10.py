"""CIFAR-10 from its binary files: 60,000 color pictures, 32 by 32, in ten classes.

The version "suitable for C programs" is read, because the one for Python is a pickle, which runs
whatever its author put into it. Source: Krizhevsky 2009, Learning Multiple Layers of Features from
Tiny Images.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lightning_sobolev.data.image_files import ImageFiles
from lightning_sobolev.data.image_set import ImageSet

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_SHAPE = (3, 32, 32)
_TEST = "test_batch.bin"


def _fetch(folder: Path) -> None:
    import pooch

    names = list(CIFAR10.checksums)
    members = [f"cifar-10-batches-bin/{name}" for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    # the archive is as large as what comes out of it, and is not needed afterwards
    with TemporaryDirectory(dir=folder) as near:
        found = pooch.retrieve(
            _URL,
            known_hash=f"sha256:{_ARCHIVE_SHA256}",
            path=near,
            processor=pooch.Untar(members=members),
        )
        for path in map(Path, found):
            os.replace(path, folder / path.name)


CIFAR10 = ImageFiles(
    title="CIFAR-10",
    checksums={
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        _TEST: "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
    fetch=_fetch,
)


def cifar10(
    root: str | Path | None = None, *, download: bool = True, files: ImageFiles = CIFAR10
) -> ImageSet:
    """Read CIFAR-10.

    Args:
        root: Folder with the six binary files; see ``ImageFiles.find`` for where else.
        download: Whether the network may be asked.
        files: Names and checksums; the one for test is called ``test_batch.bin``.

    Returns:
        50,000 pictures for training and 10,000 for test, ``[pictures, 3, 32, 32]``.
    """
    folder = files.find(root, download=download)
    parts = {name: read_records(files.content(folder, name), name) for name in files.checksums}
    train = [part for name, part in parts.items() if name != _TEST]
    images, labels = (torch.cat(columns) for columns in zip(*train, strict=True))
    return ImageSet(images, labels, *parts[_TEST], num_classes=10)


def read_records(
    content: bytes, name: str
) -> tuple[UInt8[Tensor, "pictures 3 32 32"], Int[Tensor, " pictures"]]:
    """Decode a binary file: for each picture its class in one byte, then red, green and blue.

    Args:
        content: The file.
        name: What to call it in an error.

    Returns:
        Pictures and classes.

    Raises:
        ValueError: If the size is not that of whole records, or a class is above nine.
    """
    size = 1 + torch.Size(_SHAPE).numel()
    if len(content) == 0 or len(content) % size:
        raise ValueError(f"{name} must hold records of {size} bytes, got {len(content)} bytes")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size)
    labels = records[:, 0].long()
    if (largest := int(labels.max())) > 9:
        raise ValueError(f"{name} must hold classes from 0 to 9, got {largest}")
    return records[:, 1:].reshape(-1, *_SHAPE), labels
