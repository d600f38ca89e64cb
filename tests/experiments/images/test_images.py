import gzip
import hashlib
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.images import data as images
from lightning_sobolev.experiments.images.atari_frames import read_records
from lightning_sobolev.experiments.images.data import ImageDataModule
from lightning_sobolev.experiments.images.fashion_mnist import (
    FASHION_MNIST,
    fashion_mnist,
    read_idx,
)
from lightning_sobolev.experiments.images.image_files import ImageFiles
from lightning_sobolev.experiments.images.image_set import ImageSet


def idx(array):
    axes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + axes + bytes(array.flatten().tolist())


def published(files, folder, contents):
    """Write files into a folder and return a description of them as a published set."""
    folder.mkdir(exist_ok=True)
    checksums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        checksums[name] = hashlib.sha256(content).hexdigest()
    return replace(files, checksums=checksums, system=None)


def no_network(folder):
    del folder
    raise OSError("no route to host")


@pytest.fixture
def clothes(generator):
    def pictures(count):
        return torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)

    return {
        "train-images-idx3-ubyte.gz": pictures(30),
        "train-labels-idx1-ubyte.gz": torch.arange(30, dtype=torch.uint8) % 10,
        "t10k-images-idx3-ubyte.gz": pictures(7),
        "t10k-labels-idx1-ubyte.gz": torch.arange(7, dtype=torch.uint8),
    }


@pytest.fixture
def small_set():
    """Thirty pictures in which the value of a pixel says which picture it is."""
    train = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 1, 6, 6)
    return ImageSet(train, torch.arange(30) % 10, train[:5], torch.arange(5), num_classes=10)


@pytest.fixture
def module(small_set, monkeypatch):
    monkeypatch.setitem(images.IMAGES, "fashion_mnist", lambda *_, **__: small_set)

    def build(**options):
        built = ImageDataModule(**{"num_validation": 6, "batch_size": 8, **options})
        built.setup()
        return built

    return build


def test_idx_files_are_read_back(tmp_path, clothes):
    files = published(FASHION_MNIST, tmp_path, {name: idx(a) for name, a in clothes.items()})
    read = fashion_mnist(tmp_path, files=files)
    expected = list(clothes.values())
    assert_close(read.train_images[:, 0], expected[0], rtol=0, atol=0)
    assert_close(read.test_images[:, 0], expected[2], rtol=0, atol=0)
    assert read.train_labels.tolist() == expected[1].tolist()
    assert read.test_labels.tolist() == expected[3].tolist()


def test_the_published_pictures_where_a_package_put_them():
    folder = FASHION_MNIST.system
    if not folder.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    read = fashion_mnist(folder, download=False)
    assert read.train_images.shape == (60000, 1, 28, 28)
    assert read.test_labels.bincount().tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01x", "idx file of unsigned bytes, got 00000d01"),
        (idx(torch.zeros(2, 3, dtype=torch.uint8))[:-1], r"must hold \[2, 3\] bytes .*, got 5"),
        (b"\x00", "got 00"),
    ],
)
def test_a_broken_idx_file_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_idx(content, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "records of 3073 bytes, got 0 bytes"),
        (bytes(3074), "records of 3073 bytes, got 3074 bytes"),
        (bytes([10]) + bytes(3072), "classes from 0 to 9, got 10"),
    ],
)
def test_broken_records_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_records(content, "test_batch.bin")


def test_one_error_names_all_three_places(tmp_path):
    files = replace(FASHION_MNIST, system=tmp_path / "nowhere", fetch=no_network)
    with pytest.raises(ValueError, match=r"data\.root.*dataset-fashion-mnist.*no route to host"):
        fashion_mnist(tmp_path, files=files)
    with pytest.raises(ValueError, match=r"download.*data\.download is off"):
        fashion_mnist(tmp_path, download=False, files=files)


def test_files_are_downloaded_into_the_named_folder(tmp_path, clothes):
    contents = {name: idx(array) for name, array in clothes.items()}
    files = published(FASHION_MNIST, tmp_path / "far", contents)

    def fetch(folder):
        published(FASHION_MNIST, folder, contents)

    read = fashion_mnist(tmp_path / "near", files=replace(files, fetch=fetch))
    assert len(read.train_images) == 30


def test_a_package_is_found_without_a_root(tmp_path, clothes, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    contents = {name: idx(array) for name, array in clothes.items()}
    files = published(FASHION_MNIST, tmp_path / "system", contents)
    files = replace(files, system=tmp_path / "system", fetch=no_network)
    assert len(fashion_mnist(files=files).test_images) == 7


def test_another_content_is_refused(tmp_path):
    files = ImageFiles(title="Toys", checksums={"a.gz": "0" * 64}, fetch=no_network)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"something"))
    with pytest.raises(ValueError, match=r"published file of Toys with the SHA-256 000"):
        files.content(tmp_path, "a.gz")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"something")[:-9])
    with pytest.raises(ValueError, match=r"a.gz must be a readable file"):
        files.content(tmp_path, "a.gz")


def moved(picture, down, right):
    """Move a picture the slow way: pixel by pixel."""
    height, width = picture.shape
    result = torch.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = picture[row - down, column - right]
    return result


def test_pixels_have_mean_zero_and_deviation_one(module):
    data = module()
    x = data.tables["train"][torch.arange(24)]["x"]
    assert_close(x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(x.std(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_pixels_stay_in_their_interval_on_request(module):
    data = module(standardize=False)
    rows = torch.arange(24)
    expected = data.tables["train"].columns["x"].float() / 255
    assert_close(data.tables["train"][rows]["x"], expected[rows], rtol=0, atol=0)


def test_splits_share_no_picture_and_do_not_depend_on_the_seed(module):
    def pictures(data, stage):
        return set(data.tables[stage].columns["x"][:, 0, 0, 0].tolist())

    first, second = module(seed=0), module(seed=1)
    assert pictures(first, "train") | pictures(first, "val") == set(range(30))
    assert not pictures(first, "train") & pictures(first, "val")
    assert pictures(first, "val") == pictures(second, "val")
    assert pictures(module(num_train=5), "val") == pictures(first, "val")
    orders = [[b["y"].tolist() for b in d.train_dataloader()] for d in (first, module(), second)]
    assert orders[0] == orders[1] != orders[2]
    assert [len(labels) for labels in orders[0]] == [8, 8, 8]


def test_every_test_picture_comes_once(module):
    labels = [label for batch in module().test_dataloader() for label in batch["y"].tolist()]
    assert labels == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "imagenet"}, "images must be one of .*fashion_mnist.*, got 'imagenet'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_validation": 30}, "must leave room for each other in 30 pictures, got 30 and None"),
        ({"num_train": 25}, "got 6 and 25"),
    ],
)
def test_wrong_settings_are_named(module, options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_pictures_need_as_many_classes():
    with pytest.raises(ValueError, match="train_images and train_labels must be equally many"):
        ImageSet(torch.zeros(2), torch.zeros(3), torch.zeros(1), torch.zeros(1), num_classes=2)
