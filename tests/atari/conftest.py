import pytest
import torch

from lightning_sobolev.atari import AtariSettings, SmallCNN


@pytest.fixture(autouse=True)
def _single_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def _small_teacher(num_actions=6, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = SmallCNN(num_actions).to(torch.float32)
        with torch.no_grad():
            teacher.head.weight.mul_(20)  # an untrained policy is nearly uniform
    return teacher.eval()


@pytest.fixture(scope="session")
def settings():
    return AtariSettings("pong", num_envs=2, max_num_frames_per_episode=60)


@pytest.fixture(scope="session")
def small_teacher():
    return _small_teacher


@pytest.fixture(scope="session")
def teacher(small_teacher):
    return small_teacher()
