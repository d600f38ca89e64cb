"""Tables and figures over a sweep: ``python scripts/report.py runs/multirun/regression``.

``python scripts/report.py docs/results/pong.csv`` makes the averages and figures anew from a table.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.experiments.report.report import report


def main() -> None:
    """Read the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of runs, or a table written earlier")
    parser.add_argument("--out", type=Path, help="folder of the results (default: the source's)")
    parser.add_argument("--by", default="", help="more settings as columns: sobolev.weight,lr")
    parser.add_argument("--name", help="what the files are called")
    given = parser.parse_args()
    by = [path for path in given.by.split(",") if path]
    try:
        for path in report(given.source, given.out, by=by, name=given.name):
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
