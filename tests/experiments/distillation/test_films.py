import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lightning_sobolev.experiments.distillation.films import Film, save_films
from lightning_sobolev.experiments.distillation.pictures import overlay

SIDE, ZOOM, GAP, CAPTION = 32, 3, 4, 20


def film(gray, num_shots, *, gradient=0.0, ended=False):
    """A film in which every shot is a little brighter than the last."""
    levels = gray + 20 * torch.arange(num_shots, dtype=torch.uint8)
    pictures = levels[:, None, None].expand(-1, SIDE, SIDE).contiguous()
    gradients = torch.zeros(num_shots, SIDE, SIDE)
    gradients[:, 0] = gradient
    return Film(pictures, gradients, tuple(float(n) for n in range(num_shots)), ended)


def screens(path):
    """Return [frame, player, height, width, color] at the size at which they were played."""
    frames = []
    with Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            screen = np.asarray(image.convert("RGB"))[CAPTION:]
            left, right = screen[:, : SIDE * ZOOM], screen[:, SIDE * ZOOM + GAP :]
            frames.append(np.stack([left, right])[:, 1::ZOOM, 1::ZOOM])
    return np.stack(frames).astype(int)


def test_overlay_is_gray_without_a_gradient_and_red_or_blue_at_the_limit():
    picture = torch.full((4,), 100, dtype=torch.uint8)
    colors = overlay(picture, torch.tensor([0.0, 2.0, -3.0, 1.0]), 2.0)
    expected = [[100, 100, 100], [255, 0, 0], [0, 0, 255], [178, 50, 50]]
    assert_close(colors, torch.tensor(expected, dtype=torch.uint8))


def test_films_stand_side_by_side_and_the_shorter_one_stops(tmp_path):
    films = {"teacher": film(40, 4), "student": film(120, 2, ended=True)}
    shown = screens(save_films(films, tmp_path / "game.gif", 70))
    assert shown.shape == (4, 2, SIDE, SIDE, 3)
    for number in range(4):
        assert np.abs(shown[number, 0] - (40 + 20 * number)).max() <= 4
        assert np.abs(shown[number, 1] - (120 + 20 * min(number, 1))).max() <= 4


def test_the_scale_is_common_to_both_players(tmp_path):
    films = {"teacher": film(40, 2, gradient=1.0), "student": film(40, 2, gradient=-0.5)}
    first = screens(save_films(films, tmp_path / "game.gif", 70))[0]
    assert np.abs(first[0, 0] - [255, 0, 0]).max() <= 4
    assert np.abs(first[1, 0] - [20, 20, 148]).max() <= 4
    assert np.abs(first[:, 1:] - 40).max() <= 4


def test_scores_are_written_above(tmp_path):
    films = {"teacher": film(40, 2), "student": film(40, 2)}
    with Image.open(save_films(films, tmp_path / "game.gif", 70)) as image:
        assert image.info["duration"] == 70
        captions = []
        for number in range(2):
            image.seek(number)
            captions.append(np.asarray(image.convert("L"))[:CAPTION])
    assert all(caption.max() > 200 for caption in captions)
    assert (captions[0] != captions[1]).any()


def test_an_animation_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "game.gif"
    films = {"teacher": film(40, 3), "student": film(40, 3)}
    before = save_films(films, path, 70).read_bytes()

    def break_off(_, target, *__, **___):
        target.write_bytes(b"GIF8")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(OSError, match="no space left"):
        save_films(films, path, 70)
    assert path.read_bytes() == before
