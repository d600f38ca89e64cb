import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, Environments, SmallCNN, play, scale_pixels
from lightning_sobolev.experiments.distillation.animation import GameAnimation
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.teachers import NetworkTeacher

ACTIONS, SEED = 6, 7


@pytest.fixture(autouse=True)
def single_precision():
    """Networks are built as in a run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def pong(**changes):
    return AtariSettings("pong", max_num_frames_per_episode=800, **changes)


def network(kind=SmallCNN):
    torch.manual_seed(3)
    return kind(ACTIONS)


def linear(num_actions):
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 84 * 84, num_actions))


@pytest.mark.parametrize("greedy", [False, True])
def test_the_game_is_the_one_that_is_played_for_its_return(greedy):
    animation = GameAnimation(pong(), num_frames=1000, every=1, greedy=greedy, seed=SEED)
    film = animation.film(network())
    played = play(network(), pong(), num_episodes=1, greedy=greedy, seed=SEED, progress=False)
    assert film.ended
    # one picture before each step and the last one
    assert len(film) == played.lengths[0] + 1
    assert film.scores[-1] == played.returns[0] < 0
    assert_close(film.gradients[-1], torch.zeros(84, 84))


def test_pictures_are_taken_every_so_many_steps_and_no_longer_than_asked():
    whole = GameAnimation(pong(), num_frames=9, every=1, seed=SEED).film(network())
    some = GameAnimation(pong(), num_frames=3, every=3, seed=SEED).film(network())
    assert not some.ended
    assert_close(some.pictures, whole.pictures[::3])
    assert_close(some.gradients, whole.gradients[::3])


def test_the_gradient_is_that_of_the_likeliest_action_in_the_newest_picture():
    player = network(linear)
    film = GameAnimation(pong(), num_frames=1, seed=SEED).film(player)
    stacks = torch.from_numpy(Environments(pong(num_envs=1), SEED).reset())
    probs = player(scale_pixels(stacks)).softmax(-1)[0].detach()
    rows = player[1].weight.detach()
    # d log p_a / dx = w_a - sum_b p_b w_b
    expected = (rows[probs.argmax()] - probs @ rows).reshape(4, 84, 84)
    assert_close(film.gradients[0], expected[-1], rtol=1e-4, atol=1e-8)
    assert_close(film.pictures[0], stacks[0, -1])


def test_rewards_and_lives_are_those_of_the_whole_game():
    settings = pong(num_envs=4, reward_clipping=True, episodic_life=True)
    whole = GameAnimation(settings).settings
    assert (whole.num_envs, whole.reward_clipping, whole.episodic_life) == (1, False, False)


@pytest.mark.parametrize("name", ["num_frames", "every"])
def test_nothing_to_see_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        GameAnimation(pong(), **{name: 0})


def test_who_cannot_play_is_named(tmp_path):
    animation = GameAnimation(pong(), num_frames=1)
    with pytest.raises(ValueError, match=r"must have a NetworkTeacher .*got teacher=NoneType"):
        animation.save(DistillationModule(network()), tmp_path)
    with pytest.raises(ValueError, match="needs a DistillationModule, got RegressionModule"):
        animation(FinishedRun(RegressionModule(nn.Linear(1, 1)), None, tmp_path))
    with pytest.raises(ValueError, match=r"network must have 6 outputs for pong .*, got 4"):
        animation.film(linear(4))
    assert not list(tmp_path.iterdir())


def test_turned_off_it_does_nothing(tmp_path):
    module = DistillationModule(network(), teacher=NetworkTeacher(network()))
    assert GameAnimation(pong(), enabled=False)(FinishedRun(module, None, tmp_path)) == {}
    assert not list(tmp_path.iterdir())
