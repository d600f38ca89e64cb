import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, Environments, play, scale_pixels
from lightning_sobolev.experiments.distillation.saliency import SaliencyFigure, overlay, saliency
from lightning_sobolev.experiments.distillation.video import VIDEO, Film, GameVideo, save_films
from tests.experiments.distillation.conftest import module_of, results_of

SEED = 7
SIDE, ZOOM, GAP, CAPTION = 32, 3, 4, 20


def pong(**changes):
    return AtariSettings("pong", max_num_frames_per_episode=800, **changes)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 84 * 84, 6))


@pytest.mark.parametrize("greedy", [False, True])
def test_the_game_is_the_one_that_is_played_for_its_return(networks, greedy):
    video = GameVideo(pong(), num_frames=1000, every=1, greedy=greedy, seed=SEED)
    film = video.film(networks[0])
    played = play(networks[0], pong(), num_episodes=1, greedy=greedy, seed=SEED, progress=False)
    # one frame before each step and the last one
    assert len(film.captions) == played.lengths[0] + 1
    assert film.captions[-1] == f"{played.returns[0]:g}, over"
    assert film.captions[-1].startswith("-")
    assert_close(film.gradients[-1], torch.zeros(84, 84))


def test_frames_are_taken_every_so_many_steps_and_no_longer_than_asked(networks):
    whole = GameVideo(pong(), num_frames=9, every=1, seed=SEED).film(networks[0])
    some = GameVideo(pong(), num_frames=3, every=3, seed=SEED).film(networks[0])
    assert not some.captions[-1].endswith("over")
    assert_close(some.frames, whole.frames[::3])
    assert_close(some.gradients, whole.gradients[::3])


@pytest.mark.usefixtures("networks")
def test_the_gradient_is_that_of_the_greedy_action_in_the_newest_frame():
    player = linear()
    film = GameVideo(pong(), num_frames=1, seed=SEED).film(player)
    stacks = torch.from_numpy(Environments(pong(num_envs=1), SEED).reset())
    probs = player(scale_pixels(stacks)).softmax(-1)[0].detach()
    rows = player[1].weight.detach()
    # d log p_a / dx = w_a - sum_b p_b w_b
    expected = (rows[probs.argmax()] - probs @ rows).reshape(4, 84, 84)
    assert_close(film.gradients[0], expected[-1], rtol=1e-4, atol=1e-8)
    assert_close(film.frames[0], stacks[0, -1])


def test_rewards_and_lives_are_those_of_the_whole_game():
    settings = pong(num_envs=4, reward_clipping=True, episodic_life=True)
    whole = GameVideo(settings).settings
    assert (whole.num_envs, whole.reward_clipping, whole.episodic_life) == (1, False, False)


def test_nothing_to_see_is_an_error():
    with pytest.raises(ValueError, match=r"num_frames and every must be at least 1, got 9, 0"):
        GameVideo(pong(), num_frames=9, every=0)


def test_who_cannot_play_is_named(networks, tmp_path):
    video = GameVideo(pong(), num_frames=1)
    with pytest.raises(ValueError, match=r"must have a NetworkTeacher .*got teacher=NoneType"):
        video.save(module_of(networks[0]), tmp_path / VIDEO)
    other = pl.LightningModule()
    for callback in (video, SaliencyFigure()):
        with pytest.raises(
            ValueError, match="module must be a DistillationModule, got LightningModule"
        ):
            callback.on_test_end(None, other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("enabled", [False, True])
def test_figure_and_video_are_left_in_the_folder_of_the_run(networks, tmp_path, enabled):
    draws = [SaliencyFigure(3, enabled), GameVideo(pong(), num_frames=2, enabled=enabled)]
    results_of(module_of(*networks), draws, tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"checkpoints"}
    assert left == ({"saliency.png", VIDEO} if enabled else set())


@pytest.mark.usefixtures("networks")
def test_saliency_is_of_the_teachers_greedy_action(generator):
    student, teacher = linear(), linear()
    x = torch.randint(0, 256, (3, 4, 84, 84), generator=generator, dtype=torch.uint8)
    greedy = teacher(x / 255).argmax(-1)
    for network, found in zip(
        (teacher, student), saliency(module_of(student, teacher), x), strict=True
    ):
        rows, probs = network[1].weight.detach(), network(x / 255).softmax(-1).detach()
        assert_close(found.flatten(1), rows[greedy] - probs @ rows, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="module must have a teacher to compare with"):
        saliency(module_of(student), x)


def film(gray, num_shots, *, gradient=0.0):
    """A film in which every shot is a little brighter than the last."""
    levels = gray + 20 * torch.arange(num_shots, dtype=torch.uint8)
    frames = levels[:, None, None].expand(-1, SIDE, SIDE).contiguous()
    gradients = torch.zeros(num_shots, SIDE, SIDE)
    gradients[:, 0] = gradient
    return Film(frames, gradients, tuple(map(str, range(num_shots))))


def saved(films, folder):
    save_films(films, folder / VIDEO, 70)
    return folder / VIDEO


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
    frame = torch.full((4,), 100, dtype=torch.uint8)
    colors = overlay(frame, torch.tensor([0.0, 2.0, -3.0, 1.0]), 2.0)
    expected = [[100, 100, 100], [255, 0, 0], [0, 0, 255], [178, 50, 50]]
    assert_close(colors, torch.tensor(expected, dtype=torch.uint8))


def test_films_stand_side_by_side_and_the_shorter_one_stops(tmp_path):
    films = {"teacher": film(40, 4), "student": film(120, 2)}
    shown = screens(saved(films, tmp_path))
    assert shown.shape == (4, 2, SIDE, SIDE, 3)
    for number in range(4):
        assert np.abs(shown[number, 0] - (40 + 20 * number)).max() <= 4
        assert np.abs(shown[number, 1] - (120 + 20 * min(number, 1))).max() <= 4


def test_the_scale_is_common_to_both_players(tmp_path):
    films = {"teacher": film(40, 2, gradient=1.0), "student": film(40, 2, gradient=-0.5)}
    first = screens(saved(films, tmp_path))[0]
    assert np.abs(first[0, 0] - [255, 0, 0]).max() <= 4
    assert np.abs(first[1, 0] - [20, 20, 148]).max() <= 4
    assert np.abs(first[:, 1:] - 40).max() <= 4


def test_scores_are_written_above(tmp_path):
    films = {"teacher": film(40, 2), "student": film(40, 2)}
    with Image.open(saved(films, tmp_path)) as image:
        assert image.info["duration"] == 70
        captions = []
        for number in range(2):
            image.seek(number)
            captions.append(np.asarray(image.convert("L"))[:CAPTION])
    assert all(caption.max() > 200 for caption in captions)
    assert (captions[0] != captions[1]).any()


def test_a_video_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    films = {"teacher": film(40, 3), "student": film(40, 3)}
    before = saved(films, tmp_path).read_bytes()

    def break_off(_, target, *__, **___):
        target.write_bytes(b"GIF8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(OSError, match="No space left"):
        saved(films, tmp_path)
    assert (tmp_path / VIDEO).read_bytes() == before
