"""docs/compatibility.md says what the tests measure."""

import re
from pathlib import Path

import pytest

from tests._compatibility import HEADS, write_tables
from tests.plugin._processes import EXACT, ROUNDED

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "compatibility.md"


def table(name, text):
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in found.splitlines()[2:]
    ]


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 50
    for path, name in set(named):
        assert f"def {name}(" in (TESTS / path).read_text(), f"{path}::{name}"


@pytest.mark.parametrize("name", HEADS)
def test_every_table_was_measured(name):
    rows = table(name, PAGE.read_text())
    assert rows
    assert all(len(row) == len(HEADS[name]) and float(row[-2]) < 0.05 for row in rows)


def test_every_strategy_has_its_row():
    rows = {tuple(row[:3]) for row in table("strategies", PAGE.read_text())}
    assert {(strategy, "64-true", engine) for strategy, engine in EXACT} <= rows
    assert {(strategy, precision, engine) for strategy, engine, precision in ROUNDED} <= rows


def test_a_run_replaces_what_it_measured_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    marks = [f"<!-- {name} -->\nold {name}\n<!-- end of {name} -->\n" for name in HEADS]
    page.write_text("".join(marks))
    rows = [("published", "lstm", d, "tests/plugin/test_x.py::test_y") for d in (1.26e-9, 0.0)]
    write_tables(page, rows)
    text = page.read_text()
    assert table("published", text) == [["lstm", "1e-09", "`plugin/test_x.py::test_y`"]]
    assert "old strategies" in text
    assert "old published" not in text
