"""Teacher and student side by side in the game: ``python scripts/animate.py RUNS_FOLDER``.

Reads every finished distillation below the folder and writes ``game.gif`` beside its numbers.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.experiments.distillation.animation import animate


def main() -> None:
    """Read the command line and write the animations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of finished distillations, or of one")
    parser.add_argument("--frames", type=int, default=300, help="most pictures of an animation")
    parser.add_argument("--every", type=int, default=2, help="steps from one picture to the next")
    parser.add_argument("--greedy", action="store_true", help="take likeliest actions")
    parser.add_argument("--seed", type=int, default=1000, help="of the game and the drawn actions")
    given = parser.parse_args()
    try:
        for path in animate(
            given.source,
            num_frames=given.frames,
            every=given.every,
            greedy=given.greedy,
            seed=given.seed,
        ):
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"animate.py: {error}")


if __name__ == "__main__":
    main()
