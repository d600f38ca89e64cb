"""Tables and figures over a sweep: ``python scripts/report.py runs/multirun/regression``.

``python scripts/report.py docs/results/pong.csv`` makes the averages and figures anew from a table.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.report.tables import BASELINE


def main() -> None:
    """Read the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of runs, or a table written earlier")
    parser.add_argument("--out", type=Path, help="folder of the results (default: the source's)")
    parser.add_argument("--name", help="what the files are called")
    parser.add_argument("--by", default="", help="more settings as columns: sobolev.weight,steps")
    parser.add_argument("--x", default="", help="the setting along the horizontal axis")
    parser.add_argument("--y", default="", help="the metrics that are shown: test_kl,seconds")
    parser.add_argument("--against", default=BASELINE, help="the baseline (default: %(default)s)")
    given = parser.parse_args()
    by, y = ([part for part in text.split(",") if part] for text in (given.by, given.y))
    view = {"x": given.x, "y": y, "against": given.against}
    try:
        for path in report(given.source, given.out, by=by, name=given.name, **view):
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
