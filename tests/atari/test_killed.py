"""A recording whose process is killed without a warning, at three bad moments."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_sobolev._files import sha256_of
from lightning_sobolev.atari import load_agent, record, save_agent
from lightning_sobolev.atari.storage import beside

ROOT = Path(__file__).parents[2]

KILLED = """
import os, signal, sys
from lightning_sobolev.atari import AtariSettings, load_agent, record, rollout, storage, writing

agent, folder, moment = sys.argv[1:]
calls = 0

def dies(function, at):
    def wrapped(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped

if moment == "in a game":
    rollout.decide = dies(rollout.decide, 47)
elif moment == "storing a chunk":
    storage.os.replace = dies(os.replace, 4)  # the header, two chunks, and a third
else:
    writing.swap_in = dies(writing.swap_in, 1)
settings = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=60)
record(folder, settings, load_agent(agent)[0], num_states=150, chunk_steps=20, progress=False)
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory, small_teacher, settings):
    path = tmp_path_factory.mktemp("agent") / "teacher.safetensors"
    save_agent(path, small_teacher(), settings)
    return path


def digests(folder):
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "moment",
    [
        "in a game",
        pytest.param("storing a chunk", marks=pytest.mark.slow),
        "putting it in its place",
    ],
)
def test_a_killed_recording_goes_on_to_the_same_bytes(tmp_path, settings, agent, moment):
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(agent), str(folder), moment],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert not folder.exists()
    chunks = sorted(beside(folder, "partial").glob("chunk-*.npz"))
    assert len(chunks) == (4 if moment == "putting it in its place" else 2)
    teacher = load_agent(agent)[0]
    resumed = record(folder, settings, teacher, num_states=150, chunk_steps=20)
    whole = record(tmp_path / "whole", settings, teacher, num_states=150)
    assert digests(resumed.folder) == digests(whole.folder)
    np.testing.assert_array_equal(resumed.frames, whole.frames)
    assert not list(tmp_path.glob("killed.*[!k]"))
