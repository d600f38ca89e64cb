"""Downloads by the real library, from a server on this machine."""

import gzip
import hashlib
import http.server
import threading
from dataclasses import replace
from functools import partial

import pytest

from lightning_sobolev.experiments.images import fashion_mnist

pooch = pytest.importorskip("pooch")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(tmp_path):
    """Serve a new folder; return the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def idx(shape):
    axes = b"".join(size.to_bytes(4, "big") for size in shape)
    count = 1
    for size in shape:
        count *= size
    return bytes([0, 0, 8, len(shape)]) + axes + bytes(count)


@pytest.fixture
def clothes(server, monkeypatch):
    """Put small idx files on the server."""
    folder, address = server
    shapes = [(4, 28, 28), (4,), (2, 28, 28), (2,)]
    checksums, packed_md5 = {}, {}
    for name, shape in zip(fashion_mnist.FASHION_MNIST.checksums, shapes, strict=True):
        packed = gzip.compress(idx(shape))
        (folder / name).write_bytes(packed)
        checksums[name] = hashlib.sha256(idx(shape)).hexdigest()
        packed_md5[name] = hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(fashion_mnist, "_URL", address)
    monkeypatch.setattr(fashion_mnist, "_PACKED_MD5", packed_md5)
    return replace(fashion_mnist.FASHION_MNIST, checksums=checksums, system=None)


def test_clothes_are_downloaded_once(clothes, server, tmp_path):
    near = tmp_path / "near"
    assert len(fashion_mnist.fashion_mnist(near, files=clothes).train_images) == 4
    for path in server[0].iterdir():
        path.unlink()
    assert len(fashion_mnist.fashion_mnist(near, files=clothes).test_images) == 2


def test_a_missing_server_is_named(clothes, server, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_URL", server[1] + "nowhere/")
    with pytest.raises(
        ValueError, match=r"Fashion-MNIST must be found.*data\.root.*HTTPError: 404"
    ):
        fashion_mnist.fashion_mnist(tmp_path / "near", files=clothes)


def test_other_bytes_than_the_published_ones_are_refused(clothes, server, tmp_path):
    name = next(iter(clothes.checksums))
    (server[0] / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="MD5 hash of downloaded file"):
        fashion_mnist.fashion_mnist(tmp_path / "near", files=clothes)
    assert not (tmp_path / "near" / name).exists()
