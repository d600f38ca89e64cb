"""Play the game with every distilled student: ``python scripts/play.py RUNS_FOLDER``.

Reads every finished distillation below the folder and writes ``play.csv``: mean returns of student
and teacher with drawn and with likeliest actions. A second call plays what is missing.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.experiments.distillation.scoring import Scoring


def main() -> None:
    """Read the command line, play, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of finished distillations")
    parser.add_argument("--out", type=Path, help="folder of the table (default: the source)")
    parser.add_argument("--episodes", type=int, default=30, help="whole games of each kind")
    parser.add_argument("--seed", type=int, default=1000, help="of the games and drawn actions")
    given = parser.parse_args()
    try:
        scoring = Scoring(given.episodes, given.seed)
        for table in scoring.score(given.source, given.out or given.source):
            print(table, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"play.py: {error}")


if __name__ == "__main__":
    main()
