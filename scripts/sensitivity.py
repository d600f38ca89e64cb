"""Gather attacks and defences: ``python scripts/sensitivity.py RUNS_FOLDER --out docs/results``.

Reads every finished run of ``+experiment=sensitivity`` below the folder.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.tasks.attack_report import attack_report


def main() -> None:
    """Read the command line and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of finished runs")
    parser.add_argument("--out", type=Path, help="folder of the tables (default: the source)")
    given = parser.parse_args()
    try:
        print(*attack_report(given.source, given.out or given.source), sep="\n")
    except (ValueError, OSError) as error:
        sys.exit(f"sensitivity.py: {error}")


if __name__ == "__main__":
    main()
