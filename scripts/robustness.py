"""Attack stored students: ``python scripts/robustness.py RUNS_FOLDER --name NAME``.

Reads every finished distillation and classifier below the folder and writes ``NAME.csv`` and
``NAME.md``: the share of wrong and of changed answers under projected gradient ascent.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.tasks.robustness import robustness


def main() -> None:
    """Read the command line and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of finished runs")
    parser.add_argument("--out", type=Path, help="folder of the tables (default: the source)")
    parser.add_argument("--name", default="robustness", help="what the tables are called")
    parser.add_argument("--radii", type=float, nargs="+", default=[0, 1, 2, 4, 8], help="in 255ths")
    parser.add_argument("--count", type=int, default=256, help="test inputs of a run")
    given = parser.parse_args()
    try:
        written = robustness(
            given.source,
            given.out or given.source,
            name=given.name,
            radii=given.radii,
            count=given.count,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"robustness.py: {error}")
    print(*written, sep="\n")


if __name__ == "__main__":
    main()
