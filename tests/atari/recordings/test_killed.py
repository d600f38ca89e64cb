"""A recording whose process is killed without a warning, at two bad moments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sobolev.atari import Recording, load_agent, record, save_agent

ROOT = Path(__file__).parents[3]

KILLED = """
import os, signal, sys
from lightning_sobolev.atari import AtariSettings, load_agent, record
from lightning_sobolev.atari.recordings import format as stored, record as recording

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
    recording.decide = dies(recording.decide, 47)
else:
    stored.write_index = dies(stored.write_index, 2)
settings = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=120)
record(folder, settings, load_agent(agent)[0], num_states=180, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a game", "before the index"])
def test_a_killed_recording_goes_on_to_the_same_bytes(
    tmp_path, settings, small_teacher, recording, moment
):
    folder, agent = tmp_path / "killed", tmp_path / "teacher.safetensors"
    save_agent(agent, small_teacher(), settings)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(agent), str(folder), moment],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert list(folder.glob("shard-00001*"))
    assert Recording(folder).num_states == 60
    record(folder, settings, load_agent(agent)[0], num_states=180)
    before, after = (
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (recording.folder, folder)
    )
    assert after == before
