"""A recording whose process is killed in the middle of a game, without a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sobolev.atari import Recording, load_agent, record, save_agent

KILLED = """
import os, signal, sys
from lightning_sobolev.atari import AtariSettings, load_agent, record
from lightning_sobolev.atari.environments import Environments

steps, step = 0, Environments.step

def dies(*arguments):
    global steps
    steps += 1
    if steps == 47:  # in the second shard
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

Environments.step = dies
settings = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=120)
record(sys.argv[2], settings, load_agent(sys.argv[1])[0], num_states=180, progress=False)
"""


@pytest.mark.slow
def test_a_killed_recording_goes_on_to_the_same_bytes(tmp_path, settings, teacher, recording):
    folder, agent = tmp_path / "killed", tmp_path / "teacher.safetensors"
    save_agent(agent, teacher, settings)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", KILLED, str(agent), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert list(folder.glob("shard-00001.frames.*.tmp"))
    assert Recording(folder).num_states == 60
    record(folder, settings, load_agent(agent)[0], num_states=180)
    for path in recording.folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == len(list(recording.folder.iterdir()))
