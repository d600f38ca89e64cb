import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, Environments, play, scale_pixels
from lightning_sobolev.experiments.distillation.figures import (
    VIDEO,
    Film,
    GameVideo,
    SaliencyFigure,
    overlay,
    saliency,
    save_films,
)
from tests.experiments.distillation.conftest import module_of, results_of

PONG = AtariSettings("pong", max_num_frames_per_episode=800)
SIDE, ZOOM, GAP, CAPTION = 32, 3, 4, 20


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 84 * 84, 6))


@pytest.mark.parametrize("greedy", [False, True])
def test_the_game_is_the_one_that_is_played_for_its_return(networks, greedy):
    clipped = AtariSettings("pong", max_num_frames_per_episode=800, reward_clipping=True)
    film = GameVideo(clipped, num_frames=1000, every=1, greedy=greedy, seed=7).film(networks[0])
    played = play(networks[0], PONG, num_episodes=1, greedy=greedy, seed=7)
    # one frame before each step and the last one
    assert len(film.captions) == played.lengths[0] + 1
    assert film.captions[-1] == f"{played.returns[0]:g}, over"
    assert played.returns[0] < 0
    assert_close(film.gradients[-1], torch.zeros(84, 84))


def test_frames_are_taken_every_so_many_steps_and_no_longer_than_asked(networks):
    whole = GameVideo(PONG, num_frames=9, every=1).film(networks[0])
    some = GameVideo(PONG, num_frames=3, every=3).film(networks[0])
    assert not some.captions[-1].endswith("over")
    assert_close(some.frames, whole.frames[::3])
    assert_close(some.gradients, whole.gradients[::3])
    with pytest.raises(ValueError, match=r"num_frames and every must be at least 1, got 9, 0"):
        GameVideo(PONG, num_frames=9, every=0)


@pytest.mark.usefixtures("networks")
def test_the_gradient_is_that_of_the_greedy_action_in_the_newest_frame():
    player = linear()
    film = GameVideo(PONG, num_frames=1, seed=7).film(player)
    one = AtariSettings("pong", num_envs=1, max_num_frames_per_episode=800)
    stacks = torch.from_numpy(Environments(one, 7).reset())
    probs = player(scale_pixels(stacks)).softmax(-1)[0].detach()
    rows = player[1].weight.detach()
    # d log p_a / dx = w_a - sum_b p_b w_b
    expected = (rows[probs.argmax()] - probs @ rows).reshape(4, 84, 84)
    assert_close(film.gradients[0], expected[-1], rtol=1e-4, atol=1e-8)
    assert_close(film.frames[0], stacks[0, -1])


def test_who_cannot_play_is_named(networks, tmp_path):
    with pytest.raises(ValueError, match=r"must have a NetworkTeacher .*got teacher=NoneType"):
        GameVideo(PONG).save(module_of(networks[0]), tmp_path / VIDEO)
    with pytest.raises(ValueError, match="must be a DistillationModule, got LightningModule"):
        GameVideo(PONG).on_test_end(None, pl.LightningModule())


@pytest.mark.parametrize("enabled", [False, True])
def test_figure_and_video_are_left_in_the_folder_of_the_run(networks, tmp_path, enabled):
    draws = [SaliencyFigure(3, enabled), GameVideo(PONG, num_frames=2, enabled=enabled)]
    results_of(module_of(*networks), draws, tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"checkpoints"}
    assert left == ({"saliency.png", VIDEO} if enabled else set())


@pytest.mark.usefixtures("networks")
def test_saliency_is_of_the_teachers_greedy_action(generator):
    student, teacher = linear(), linear()
    x = torch.randint(0, 256, (3, 4, 84, 84), generator=generator, dtype=torch.uint8)
    greedy = teacher(x / 255).argmax(-1)
    found = saliency(module_of(student, teacher), x)
    for network, gradients in zip((teacher, student), found, strict=True):
        rows, probs = network[1].weight.detach(), network(x / 255).softmax(-1).detach()
        assert_close(gradients.flatten(1), rows[greedy] - probs @ rows, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="module must have a teacher to compare with"):
        saliency(module_of(student), x)


def test_overlay_is_gray_without_a_gradient_and_red_or_blue_at_the_limit():
    frame = torch.full((4,), 100, dtype=torch.uint8)
    colors = overlay(frame, torch.tensor([0.0, 2.0, -3.0, 1.0]), 2.0)
    expected = [[100, 100, 100], [255, 0, 0], [0, 0, 255], [178, 50, 50]]
    assert_close(colors, torch.tensor(expected, dtype=torch.uint8))


def saved(folder, teacher, student):
    """Save films in which every shot is a little brighter than the last.

    A player is a gray level, a number of shots and the gradient in the uppermost row.
    """
    films = {}
    for name, (gray, num_shots, gradient) in {"teacher": teacher, "student": student}.items():
        levels = gray + 20 * torch.arange(num_shots, dtype=torch.uint8)
        frames = levels[:, None, None].expand(-1, SIDE, SIDE).contiguous()
        gradients = torch.zeros(num_shots, SIDE, SIDE)
        gradients[:, 0] = gradient
        films[name] = Film(frames, gradients, tuple(map(str, range(num_shots))))
    save_films(films, folder / VIDEO, 70)
    return folder / VIDEO


def test_films_stand_side_by_side_with_one_scale_and_the_shorter_one_stops(tmp_path):
    captions = []
    with Image.open(saved(tmp_path, (40, 4, 1.0), (120, 2, -0.5))) as image:
        assert (image.n_frames, image.info["duration"]) == (4, 70)
        for number in range(4):
            image.seek(number)
            pixels = np.asarray(image.convert("RGB")).astype(int)
            captions.append(pixels[:CAPTION])
            left, right = pixels[CAPTION:, : SIDE * ZOOM], pixels[CAPTION:, SIDE * ZOOM + GAP :]
            teacher, student = (screen[1::ZOOM, 1::ZOOM] for screen in (left, right))
            assert teacher.shape == student.shape == (SIDE, SIDE, 3)
            gray = 120 + 20 * min(number, 1)
            assert np.abs(teacher[1:] - (40 + 20 * number)).max() <= 4
            assert np.abs(student[1:] - gray).max() <= 4
            assert np.abs(teacher[0] - [255, 0, 0]).max() <= 4
            assert np.abs(student[0] - [gray / 2, gray / 2, gray / 2 + 127.5]).max() <= 4
    assert all(caption.max() > 200 for caption in captions)
    assert (captions[0] != captions[1]).any()


def test_a_video_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    before = saved(tmp_path, (40, 3, 0.0), (40, 3, 0.0)).read_bytes()

    def break_off(_, target, *__, **___):
        target.write_bytes(b"GIF8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, (40, 3, 0.0), (40, 3, 0.0))
    assert (tmp_path / VIDEO).read_bytes() == before
