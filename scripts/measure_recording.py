"""Measure how fast states are recorded and served: ``python scripts/measure_recording.py``.

Records into a temporary folder, which needs about 14 kB a state while it is written.
"""

import argparse
import sys

import torch

from lightning_sobolev.tasks.speed import measure


def main() -> None:
    """Read the command line, measure, and print one number a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="pong", help="who plays: a name or a file")
    parser.add_argument("--states", type=int, default=100_000, help="states to record")
    parser.add_argument("--envs", type=int, default=8, help="games side by side")
    parser.add_argument("--batch-size", type=int, default=32, help="states in a batch")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        numbers = measure(
            given.agent,
            num_states=given.states,
            num_envs=given.envs,
            batch_size=given.batch_size,
        )
    except ValueError as error:
        sys.exit(f"measure_recording.py: {error}")
    for name, value in numbers.items():
        print(f"{name:>30} {value:12.1f}")


if __name__ == "__main__":
    main()
