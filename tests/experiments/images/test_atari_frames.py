import json

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.images import atari_frames as module
from lightning_sobolev.experiments.images.atari_frames import AtariFrames, atari_frames

SMALL = AtariFrames(num_train=60, num_test=20, per_episode=4, actions_between=2, noise=9)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    return root, atari_frames(root, settings=SMALL)


def test_the_set_is_recorded_once_and_read_back(recorded, monkeypatch):
    root, first = recorded
    assert first.train_images.shape == (60, 3, 32, 32)
    assert first.train_labels.bincount().tolist() == [6] * 10
    assert first.test_labels.bincount().tolist() == [2] * 10
    monkeypatch.setattr(module, "record", None)  # would fail
    again = atari_frames(root, download=False, settings=SMALL)
    assert_close(again.train_images, first.train_images, rtol=0, atol=0)
    assert sorted(path.name for path in root.iterdir()) == ["atari-frames"]


@pytest.mark.slow
def test_the_same_seed_records_the_same(recorded, tmp_path):
    root, _ = recorded
    atari_frames(tmp_path, settings=SMALL)
    ours, theirs = (
        json.loads((folder / "atari-frames" / "index.json").read_text())
        for folder in (tmp_path, root)
    )
    assert ours == theirs


def test_test_pictures_come_from_other_episodes(monkeypatch):
    """Every frame shows the number of its episode."""
    played = []

    def episode(console, settings, _):
        played.append(console)
        for _ in range(settings.per_episode):
            yield torch.full((210, 160, 3), len(played), dtype=torch.uint8).numpy()

    monkeypatch.setattr(module, "_console", str)
    monkeypatch.setattr(module, "_episode", episode)
    pictures = module._pictures(0, AtariFrames(num_train=60, num_test=20, per_episode=4, noise=0))
    shown = pictures[:, 0, 0, 0].tolist()
    assert shown == [1, 1, 1, 1, 2, 2, 3, 3]


def test_a_piece_is_the_mean_of_blocks(generator):
    frame = torch.randint(0, 256, (210, 160, 3), dtype=torch.uint8, generator=generator)
    drawn = torch.Generator().manual_seed(1)
    top = int(torch.randint(0, 210 - 64 + 1, (1,), generator=drawn))
    left = int(torch.randint(0, 160 - 64 + 1, (1,), generator=drawn))
    piece = module._piece(frame.numpy(), 2, torch.Generator().manual_seed(1))
    square = frame[top : top + 64, left : left + 64].movedim(-1, 0).double()
    expected = torch.nn.functional.avg_pool2d(square, 2).floor().to(torch.uint8)
    assert_close(piece, expected, rtol=0, atol=0)


def test_what_broke_off_leaves_nothing(tmp_path, monkeypatch):
    def broken(label, settings):
        del settings
        if label == 3:
            raise KeyboardInterrupt
        return torch.zeros(8, 3, 32, 32, dtype=torch.uint8)

    monkeypatch.setattr(module, "_pictures", broken)
    with pytest.raises(KeyboardInterrupt):
        atari_frames(tmp_path, settings=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    pictures = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    monkeypatch.setattr(module, "_pictures", lambda *_: pictures)
    atari_frames(tmp_path, settings=SMALL)
    (tmp_path / "atari-frames" / "test.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match=r"test\.bin must have the SHA-256 .* delete the folder"):
        atari_frames(tmp_path, settings=SMALL)


def test_other_settings_are_not_taken_for_these(recorded):
    root, _ = recorded
    other = AtariFrames(num_train=60, num_test=20, per_episode=4, actions_between=2, noise=10)
    with pytest.raises(ValueError, match=r"got others in noise: name another data\.root"):
        atari_frames(root, settings=other)


def test_nothing_is_recorded_when_that_is_off(tmp_path):
    with pytest.raises(ValueError, match=r"got none and data\.download is off"):
        atari_frames(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": ("pong",) * 10}, "ten different ones"),
        ({"num_test": 15}, "num_test must be a multiple of ten games, got 15"),
        ({"shrink": 6}, r"shrink must lie in 1\.\.5, got 6"),
        ({"noise": 256}, r"noise must lie in 0\.\.255, got 256"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AtariFrames(**options)
