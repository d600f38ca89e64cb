"""Write the tables and the figure of what known_derivatives.py measured, beside it.

python scripts/known_derivatives_tables.py docs/results/balance.csv
python scripts/known_derivatives_tables.py docs/results/noise.csv
python scripts/known_derivatives_tables.py docs/results/neighbors.csv
"""

import argparse
from pathlib import Path

from lightning_sobolev.tasks.stacked.showing import show


def main() -> None:
    """Show what a table of runs says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    for path in show(parser.parse_args().table):
        print(path)


if __name__ == "__main__":
    main()
