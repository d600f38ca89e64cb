import pytest

from lightning_sobolev.atari import AtariSettings, record


@pytest.fixture(scope="session")
def settings():
    """Episodes of 30 steps: a shard has 60 states."""
    return AtariSettings("pong", num_envs=2, max_num_frames_per_episode=120)


@pytest.fixture(scope="session")
def recording(tmp_path_factory, settings, teacher):
    folder = tmp_path_factory.mktemp("recordings") / "pong"
    return record(folder, settings, teacher, num_states=180)
