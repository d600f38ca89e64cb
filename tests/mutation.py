"""Measures which share of the mutants of the core some test kills; ``make mutation``.

mutmut makes the mutants, notes which tests reach which function, and runs each mutant against
those tests alone, fastest first, until one fails; ``[tool.mutmut]`` in pyproject.toml says which
files and tests. This file adds a seeded sample of the mutants (the others are marked as skipped), a
mutant that changes nothing and must survive, and the tables of docs/results/mutation.md. A reason
beside a survivor there is kept as long as it is the same change to the same function.
"""

import argparse
import fnmatch
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mutmut.stats import status_by_exit_code

FOLDER = Path("mutants")
SKIPPED = 34  # mutmut's exit code of a mutant that is not to be run
KILLED = ("killed", "timeout", "segfault")
NAMES = re.compile(r"\.x_?(?P<function>\S+?)__mutmut_(?P<number>\d+)$")


def mutmut(*arguments, quiet=False):
    program = shutil.which("mutmut", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    output = subprocess.PIPE if quiet else None
    return subprocess.run([program, *arguments], stdout=output, stderr=output, text=True)


def metas():
    """Yield what mutmut knows of the mutants of each file: a path and a dictionary."""
    for path in sorted(FOLDER.rglob("*.meta")):
        meta = json.loads(path.read_text())
        if meta["exit_code_by_key"]:
            yield path, meta


def choose(patterns, size, seed):
    """Mark all but a sample as skipped; return the name of a mutant that changes nothing."""
    names = sorted(name for _, meta in metas() for name in meta["exit_code_by_key"])
    names = [name for name in names if not name.endswith("_0")]
    if patterns:
        names = [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]
    chosen = set(random.Random(seed).sample(names, min(size or len(names), len(names))))
    stats = json.loads((FOLDER / "mutmut-stats.json").read_text())
    reached = stats["tests_by_mangled_function_name"]
    most = max(reached, key=lambda function: (len(reached[function]), function))
    unchanged = f"{most}__mutmut_0"  # mutmut counts from 1 and runs the original for any other
    for path, meta in metas():
        codes = meta["exit_code_by_key"]
        if any(name.startswith(f"{most}__mutmut_") for name in codes):
            codes[unchanged] = None
        for name in codes.keys() - {unchanged}:
            is_killed = status_by_exit_code[codes[name]] == "killed"
            codes[name] = (codes[name] if is_killed else None) if name in chosen else SKIPPED
        path.write_text(json.dumps(meta, indent=4))
    return unchanged


def shares_and_survivors(unchanged):
    """Return the rows of the two tables, and the share of all that is killed."""
    shares, survivors, killed, total = [], [], 0, 0
    for path, meta in metas():
        file = str(path.relative_to(FOLDER / "lightning_sobolev")).removesuffix(".meta")
        codes = {n: code for n, code in meta["exit_code_by_key"].items() if code != SKIPPED}
        codes.pop(unchanged, None)
        alive = [n for n, code in codes.items() if status_by_exit_code[code] not in KILLED]
        if codes:
            shares.append(_share(f"`{file}`", len(codes), len(alive)))
            survivors += [(file, *_change(name)) for name in alive]
            killed, total = killed + len(codes) - len(alive), total + len(codes)
    return [*shares, _share("all", total, total - killed)], survivors, killed / max(total, 1)


def _share(name, count, alive):
    return f"| {name} | {count} | {count - alive} | {alive} | {1 - alive / count:.1%} |"


def _change(name):
    lines = mutmut("show", name, quiet=True).stdout.splitlines()
    before, after = (
        " ".join(x[1:].strip() for x in lines if x.startswith(sign) and not x.startswith(3 * sign))
        for sign in "-+"
    )
    function = NAMES.search(name)["function"].strip("ǁ").replace("ǁ", ".")
    return function, f"`{before}` → `{after}`".replace("|", "\\|")


def write(page, tables):
    """Replace the rows between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    text = page.read_text()
    for name, (head, rows) in tables.items():
        table = "\n".join([head, re.sub(r"[^|]+", "---", head), *rows])
        marks = rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)"
        text, found = re.subn(marks, lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL)
        assert found == 1, f"{page} must have one place for the table {name!r}, got {found}"
    page.write_text(text)


def with_reasons(page, survivors):
    """Return the rows of the survivors, each with the reason that the page has for it already."""
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.read_text().splitlines()]
    known = {(row[0], row[1]): row[2] for row in cells if len(row) == 3}
    keys = dict.fromkeys((f"`{file}` {function}", change) for file, function, change in survivors)
    return [f"| {where} | {change} | {known.get((where, change), '')} |" for where, change in keys]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="names of mutants, such as '*.loss.compare.*'")
    parser.add_argument("--sample", type=int, default=0, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run only what survived the last time")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced")
    parser.add_argument("--least", type=float, default=0.9, help="the share that must be killed")
    options = parser.parse_args()
    if not options.again:
        shutil.rmtree(FOLDER, ignore_errors=True)
    # Of a name that no mutant has, mutmut makes all mutants, times the tests, and stops.
    made = mutmut("run", "--max-children", "2", "none", quiet=True)
    assert "nothing matches" in made.stderr, made.stdout[-3000:] + made.stderr[-3000:]
    unchanged = choose(options.patterns, options.sample, options.seed)
    mutmut("run", "--max-children", "2")
    codes = {name: code for _, meta in metas() for name, code in meta["exit_code_by_key"].items()}
    assert codes[unchanged] == 0, f"tests fail on {unchanged}, which is no mutant"
    shares, survivors, share = shares_and_survivors(unchanged)
    print("\n".join(shares))
    if options.page is not None:
        tables = {
            "shares": ("| file | mutants | killed | survived | share |", shares),
            "survivors": ("| where | change | reason |", with_reasons(options.page, survivors)),
        }
        write(options.page, tables)
    sys.exit(share < options.least)


if __name__ == "__main__":
    main()
