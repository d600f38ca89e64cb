"""Writes the tables of docs/compatibility.md from what the tests measured."""

import re

HEADS = {
    "strategies": ("strategy", "precision", "engine", "deviation", "test"),
    "precisions": ("precision", "derivatives in", "engine", "deviation", "test"),
    "published": ("module", "deviation", "test"),
}


def write_tables(page, rows):
    """Replace the tables of ``page`` for which there are rows, between their marks.

    Args:
        page: A Markdown file with ``<!-- NAME -->`` and ``<!-- end of NAME -->``.
        rows: (table, columns, relative deviation, test); of rows that differ in the deviation
            alone the largest is written.
    """
    text = page.read_text()
    for name in dict.fromkeys(row[0] for row in rows):
        largest = {}
        for _, *columns, deviation, test in (row for row in rows if row[0] == name):
            key = (*columns, test)
            largest[key] = max(deviation, largest.get(key, 0.0))
        lines = [_line(key, deviation) for key, deviation in largest.items()]
        head = [" | ".join(HEADS[name]), "|".join("---" for _ in HEADS[name])]
        table = "".join(f"| {line} |\n" for line in [*head, *lines])
        marks = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text, found = re.subn(marks, lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL)
        assert found == 1, f"{page} must have one place for the table {name!r}, got {found}"
    page.write_text(text)


def _line(key, deviation):
    *columns, test = key
    path, name = test.split("::")
    size = "0" if deviation == 0.0 else f"{deviation:.0e}"
    return " | ".join([*columns, size, f"`{path.removeprefix('tests/')}::{name}`"])
