import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.images import atari_frames as module
from lightning_sobolev.experiments.images.atari_frames import atari_frames

SMALL = {"num_train": 60, "num_test": 20}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GAMES", ("assault", "pooyan"))
        yield root, atari_frames(root, **SMALL)


def test_the_set_is_recorded_once_and_read_back(recorded, monkeypatch):
    root, first = recorded
    assert first.train.images.shape == (60, 3, 32, 32)
    assert first.train.labels.bincount().tolist() == [30, 30]
    assert first.test.labels.bincount().tolist() == [10, 10]
    assert first.classes == ("assault", "pooyan")
    monkeypatch.setattr(module, "_record", None)  # would fail
    again = atari_frames(root, download=False, **SMALL)
    assert_close(again.train.images, first.train.images, rtol=0, atol=0)


@pytest.mark.slow
def test_the_same_seed_records_the_same_and_another_has_a_file_of_its_own(recorded, tmp_path):
    root, _ = recorded
    for seed in (0, 1):
        atari_frames(tmp_path, seed=seed, **SMALL)
    ours, other = sorted(path.read_bytes() for path in tmp_path.glob("*.npz"))
    assert next(root.glob("*.npz")).read_bytes() in (ours, other)
    assert ours != other


def test_test_images_come_from_other_episodes(monkeypatch):
    """Every image shows the number of its episode, which has four."""

    def episodes(*_):
        for number in range(1, 99):
            yield 4 * [torch.full((3, 32, 32), number, dtype=torch.uint8)]

    monkeypatch.setattr(module, "_episodes", episodes)
    monkeypatch.setattr(module, "_NOISE", 0)
    train, test = module._images("pong", [6, 2], torch.Generator())
    assert train[:, 0, 0, 0].tolist() == [1, 1, 1, 1, 2, 2]
    assert test[:, 0, 0, 0].tolist() == [3, 3]


def test_a_piece_is_the_mean_of_blocks(generator):
    frame = torch.randint(0, 256, (210, 160, 3), dtype=torch.uint8, generator=generator)
    drawn = torch.Generator().manual_seed(1)
    top = int(torch.randint(0, 210 - 64 + 1, (1,), generator=drawn))
    left = int(torch.randint(0, 160 - 64 + 1, (1,), generator=drawn))
    piece = module._piece(frame.numpy(), torch.Generator().manual_seed(1))
    square = frame[top : top + 64, left : left + 64].movedim(-1, 0).double()
    expected = torch.nn.functional.avg_pool2d(square, 2).floor().to(torch.uint8)
    assert_close(piece, expected, rtol=0, atol=0)


@pytest.fixture
def blank(monkeypatch):
    """Games of which nothing is seen, and which need no emulator."""

    def images(_, counts, *__):
        return [torch.zeros(count, 3, 32, 32, dtype=torch.uint8) for count in counts]

    monkeypatch.setattr(module, "_images", images)


@pytest.mark.usefixtures("blank")
def test_what_broke_off_leaves_nothing_to_read(tmp_path, monkeypatch):
    def full(file, **_):
        file.write(b"the first bytes")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "savez", full)
        with pytest.raises(OSError, match="no space left"):
            atari_frames(tmp_path, **SMALL)
    assert not list(tmp_path.glob("*.npz*tmp"))
    assert len(atari_frames(tmp_path, **SMALL).train.images) == 60


@pytest.mark.parametrize("place", [0, 5_000, -10])
@pytest.mark.usefixtures("blank")
def test_a_damaged_file_is_refused(place, tmp_path):
    atari_frames(tmp_path, **SMALL)
    (path,) = tmp_path.glob("*.npz")
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\.npz must be whole, got .*: delete it"):
        atari_frames(tmp_path, **SMALL)


def test_nothing_is_recorded_when_that_is_off(tmp_path):
    with pytest.raises(ValueError, match=r"got none and data\.download is off"):
        atari_frames(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"num_test must be a multiple of \d+ games, got 15"):
        atari_frames(tmp_path, num_test=15)
