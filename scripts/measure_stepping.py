"""Measure how fast games are stepped: ``python scripts/measure_stepping.py``.

``async`` is gymnasium's AsyncVectorEnv of AtariPreprocessing and four stacked frames, one process a
game; ``native`` is ale_py's AtariVectorEnv, on which recordings are made. Both get the same random
actions, resize to 84 x 84 and skip three of four frames. Needs gymnasium and ale-py, and OpenCV for
``async`` (AtariPreprocessing); nothing of this package, so that an environment of its own will do.
Counts processor time by ``/proc``, so Linux alone.
"""

import argparse
import functools
import os
import time
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv


def _one(game: str) -> gymnasium.Env:
    name = "".join(word.capitalize() for word in game.split("_"))
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(f"ALE/{name}-v5", frameskip=1, repeat_action_probability=0.0)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=30)
    return gymnasium.wrappers.FrameStackObservation(env, 4)


def _make(kind: str, game: str, num_envs: int) -> Any:
    if kind == "async":
        return gymnasium.vector.AsyncVectorEnv([functools.partial(_one, game)] * num_envs)
    return AtariVectorEnv(game, num_envs)


def _processor_seconds(envs: Any) -> float:
    own = time.process_time()
    for process in getattr(envs, "processes", ()):  # their start and imports do not count
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        own += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own


def main() -> None:
    """Read the command line, step, and print one number a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("async", "native"), help="what steps the games")
    parser.add_argument("--game", default="pong", help="name of the game, as ale_py writes it")
    parser.add_argument("--envs", type=int, default=8, help="games side by side")
    parser.add_argument("--steps", type=int, default=500, help="steps of each game")
    given = parser.parse_args()
    envs = _make(given.kind, given.game, given.envs)
    actions = np.random.default_rng(0).integers(0, 6, (given.steps, given.envs))
    envs.reset(seed=0)
    started, worked = time.perf_counter(), _processor_seconds(envs)
    for action in actions:
        envs.step(action)
    seconds = time.perf_counter() - started
    worked = _processor_seconds(envs) - worked
    envs.close()
    states = actions.size
    print(f"{'states_per_second':>32} {states / seconds:10.1f}")
    print(f"{'states_per_processor_second':>32} {states / worked:10.1f}")


if __name__ == "__main__":
    main()
