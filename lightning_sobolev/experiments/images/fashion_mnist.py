"""Fashion-MNIST: 70,000 gray images of clothes, 28 by 28, in ten classes.

Source: Xiao, Rasul and Vollgraf 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms (arXiv:1708.07747). MIT licence.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled, cache_folder

CLASSES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
NAMES = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
# SHA-256 of the packed files at URL, in the order of their names.
PACKED = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
# Of their content, by which files are told: Debian packs the same images into other bytes.
CONTENT = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)


def fashion_mnist(root: str | Path | None = None, *, download: bool = True) -> ImageSet:
    """Read Fashion-MNIST: from a folder, from Debian's package, or from a download."""
    folder = _folder(Path(root) if root is not None else cache_folder() / "fashion-mnist", download)
    files = zip(NAMES, CONTENT, strict=True)
    x, y, test_x, test_y = (_array(_content(folder / name, sha256)) for name, sha256 in files)
    train, test = Labeled(x.unsqueeze(1), y.long()), Labeled(test_x.unsqueeze(1), test_y.long())
    return ImageSet(train, test, CLASSES)


def _folder(own: Path, download: bool) -> Path:
    for folder in (own, DEBIAN):
        if all((folder / name).is_file() for name in NAMES):
            return folder
    why = "data.download is off"
    if download:
        try:
            import pooch

            published = pooch.create(own, URL, registry=dict(zip(NAMES, PACKED, strict=True)))
            for name in NAMES:
                published.fetch(name)
            return own
        except (OSError, ModuleNotFoundError) as error:
            why = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"Fashion-MNIST must be found, got none of {', '.join(NAMES)} in {own}: name their "
        "folder with data.root, install the package dataset-fashion-mnist (Debian), or let them be "
        f"downloaded (extra 'images', needs a network; {why})"
    )


def _content(path: Path, sha256: str) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a readable file, got {error}") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        text = f"{path} must be the published file of Fashion-MNIST with the SHA-256 {sha256}"
        raise ValueError(f"{text}, got {found}: delete it and fetch it again")
    return content


def _array(content: bytes) -> UInt8[Tensor, "*shape"]:
    # An idx file: two zero bytes, the type of the entries, the number of axes, the size of each as
    # a big-endian number of four bytes, then the entries. Its checksum says that it is one.
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
