"""Fashion-MNIST from a folder, from a package and from a server on this machine."""

import gzip
import hashlib
import http.server
import threading
from functools import partial

import pytest
import torch

from lightning_sobolev.experiments.images import fashion_mnist as module
from lightning_sobolev.experiments.images.fashion_mnist import DEBIAN, NAMES, fashion_mnist


def idx(array):
    axes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + axes + bytes(array.flatten().tolist())


def sha256(contents):
    return tuple(hashlib.sha256(content).hexdigest() for content in contents)


@pytest.fixture
def clothes(generator, monkeypatch, tmp_path):
    """Four arrays, packed, in place of what is published; the system has none of them."""
    arrays = [
        torch.randint(0, 256, (30, 28, 28), dtype=torch.uint8, generator=generator),
        torch.arange(30, dtype=torch.uint8) % 10,
        torch.randint(0, 256, (7, 28, 28), dtype=torch.uint8, generator=generator),
        torch.arange(7, dtype=torch.uint8),
    ]
    contents = [idx(array) for array in arrays]
    packed = [gzip.compress(content) for content in contents]
    monkeypatch.setattr(module, "CONTENT", sha256(contents))
    monkeypatch.setattr(module, "PACKED", sha256(packed))
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "system")
    return arrays, packed


def stored(folder, packed):
    folder.mkdir(exist_ok=True)
    for name, content in zip(NAMES, packed, strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", ["named", "system", "cache"])
def test_files_are_read_where_they_are(place, clothes, tmp_path, monkeypatch):
    arrays, packed = clothes
    monkeypatch.setenv("HOME", str(tmp_path))
    (cache := tmp_path / ".cache" / "lightning_sobolev" / "fashion-mnist").mkdir(parents=True)
    # a package has packed the same images into other bytes
    repacked = [gzip.compress(gzip.decompress(content), 1) for content in packed]
    folder = {"named": tmp_path / "named", "system": tmp_path / "system", "cache": cache}[place]
    stored(folder, repacked)
    train, test, classes = fashion_mnist(folder if place == "named" else None, download=False)
    assert torch.equal(train.images[:, 0], arrays[0])
    assert torch.equal(test.images[:, 0], arrays[2])
    assert train.labels.tolist() == arrays[1].tolist()
    assert test.labels.tolist() == arrays[3].tolist()
    assert len(classes) == 10


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_published_images_where_a_package_put_them():
    assert fashion_mnist(DEBIAN, download=False).test.labels.bincount().tolist() == [1000] * 10


def test_one_error_names_all_three_places(clothes, tmp_path, monkeypatch):
    del clothes
    with pytest.raises(ValueError, match=r"data\.root.*dataset-fashion-mnist.*download is off"):
        fashion_mnist(tmp_path, download=False)
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:1/")
    with pytest.raises(ValueError, match=r"data\.root.*extra 'images'.*ConnectionError"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: gzip.compress(b"something"), "must be the published file of Fashion-MNIST"),
        (lambda packed: packed[:40] + b"~~~~" + packed[44:], "must be a readable file"),
    ],
)
def test_a_damaged_file_is_named(damage, message, clothes, tmp_path):
    folder = stored(tmp_path / "named", clothes[1])
    path = folder / NAMES[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{NAMES[0]} {message}"):
        fashion_mnist(folder)


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(clothes, tmp_path, monkeypatch):
    """Publish the files; return the folder they are served from."""
    pytest.importorskip("pooch")
    folder = stored(tmp_path / "served", clothes[1])
    handler = partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{running.server_port}/")
        yield folder
        running.shutdown()


def test_files_are_downloaded_once(server, tmp_path):
    assert len(fashion_mnist(tmp_path / "near").train.images) == 30
    for path in server.iterdir():
        path.unlink()
    assert len(fashion_mnist(tmp_path / "near").test.images) == 7


def test_missing_files_and_other_bytes_than_the_published_ones_are_not_kept(server, tmp_path):
    (server / NAMES[1]).unlink()
    with pytest.raises(ValueError, match=r"Fashion-MNIST must be found.*HTTPError: 404"):
        fashion_mnist(tmp_path / "far")
    (server / NAMES[0]).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA256 hash of downloaded file"):
        fashion_mnist(tmp_path / "near")
    assert not (tmp_path / "near" / NAMES[0]).exists()
