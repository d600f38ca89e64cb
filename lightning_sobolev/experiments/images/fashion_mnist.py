"""Fashion-MNIST: 70,000 gray pictures of clothes, 28 by 28, in ten classes.

Source: Xiao, Rasul and Vollgraf 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms (arXiv:1708.07747). MIT licence.
"""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_sobolev.experiments.images.image_files import ImageFiles
from lightning_sobolev.experiments.images.image_set import ImageSet

_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
# Of the packed files, as their authors publish them beside the download links.
_PACKED_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_UNSIGNED_BYTES = 8


def _fetch(folder: Path) -> None:
    import pooch

    for name, md5 in _PACKED_MD5.items():
        pooch.retrieve(_URL + name, known_hash=f"md5:{md5}", fname=name, path=folder)


FASHION_MNIST = ImageFiles(
    title="Fashion-MNIST",
    checksums={
        "train-images-idx3-ubyte.gz": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte.gz": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    fetch=_fetch,
    system=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
)


def fashion_mnist(
    root: str | Path | None = None, *, download: bool = True, files: ImageFiles = FASHION_MNIST
) -> ImageSet:
    """Read Fashion-MNIST.

    Args:
        root: Folder with the four idx files; see ``ImageFiles.find`` for where else they are found.
        download: Whether the network may be asked.
        files: Names and checksums: pictures and classes for training, then for test.

    Returns:
        60,000 pictures for training and 10,000 for test, ``[pictures, 1, 28, 28]``.
    """
    folder = files.find(root, download=download)
    names = list(files.checksums)
    parts = [read_idx(files.content(folder, name), name) for name in names]
    return ImageSet(
        train_images=parts[0].unsqueeze(1),
        train_labels=parts[1].long(),
        test_images=parts[2].unsqueeze(1),
        test_labels=parts[3].long(),
        num_classes=10,
    )


def read_idx(content: bytes, name: str) -> UInt8[Tensor, "*shape"]:
    """Decode an idx file of unsigned bytes.

    Two zero bytes, the type of the entries, the number of axes, each axis as a big-endian 32-bit
    number, then the entries.

    Args:
        content: The unpacked file.
        name: What to call it in an error.

    Returns:
        The array.

    Raises:
        ValueError: If it is no such file, or has more or fewer entries than it says.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise ValueError(f"{name} must be an idx file of unsigned bytes, got {content[:4].hex()}")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    entries = len(content) - start
    if entries != torch.Size(shape).numel():
        raise ValueError(f"{name} must hold {shape} bytes as its header says, got {entries}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
