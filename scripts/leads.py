"""Count disagreements by how clearly the teacher decides: ``python scripts/leads.py RUNS_FOLDER``.

Reads every finished distillation below the folder and writes ``GAME_leads.csv``.
"""

import argparse
import sys
from pathlib import Path

from lightning_sobolev.tasks.leads import leads


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of finished distillations")
    parser.add_argument("--out", type=Path, help="folder of the table (default: the source)")
    given = parser.parse_args()
    try:
        print(leads(given.source, given.out or given.source))
    except (ValueError, OSError) as error:
        sys.exit(f"leads.py: {error}")


if __name__ == "__main__":
    main()
