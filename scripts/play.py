"""Play the game with every distilled student: ``python scripts/play.py RUNS_FOLDER``.

Reads every finished distillation below the folder and writes ``play.csv``: mean returns of student
and teacher with sampled and with greedy actions. A second call plays what is missing. With
``--gif`` it writes ``game.gif`` beside the numbers of every run instead, teacher and student side
by side in the same game.
"""

import argparse
import sys
from pathlib import Path

import torch

from lightning_sobolev.experiments.distillation.stored import film_stored, play_stored


def main() -> None:
    """Read the command line, play, and write the table or the videos."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of finished distillations, or of one")
    parser.add_argument("--out", type=Path, help="folder of the table (default: the source)")
    parser.add_argument("--episodes", type=int, default=30, help="whole games of each kind")
    parser.add_argument("--seed", type=int, default=1000, help="of the games and sampled actions")
    parser.add_argument("--gif", action="store_true", help="write game.gif of every run instead")
    parser.add_argument("--frames", type=int, default=300, help="most frames of a GIF")
    parser.add_argument("--every", type=int, default=2, help="steps from one frame to the next")
    given = parser.parse_args()
    # Networks that are asked a few states at a time gain nothing from more threads.
    torch.set_num_threads(1)
    look = {"num_frames": given.frames, "every": given.every, "seed": given.seed}
    games = {"num_episodes": given.episodes, "seed": given.seed}
    try:
        written = (
            film_stored(given.source, **look)
            if given.gif
            else play_stored(given.source, given.out or given.source, **games)
        )
        for path in written:
            print(path, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"play.py: {error}")


if __name__ == "__main__":
    main()
