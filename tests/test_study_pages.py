"""The tables of the pages of studies are those of the committed results."""

import pytest

from tests._study_pages import (
    DOCS,
    accuracy_lines,
    atari_lines,
    cost_lines,
    dagger_lines,
    left_lines,
    policy_lines,
    return_lines,
    time_lines,
    waiting_lines,
)

TABLES = {
    "atari-study": [atari_lines, return_lines, time_lines],
    "policies": [policy_lines, dagger_lines],
    "synthetic-gradients": [accuracy_lines, cost_lines, left_lines, waiting_lines],
}


@pytest.mark.parametrize(
    ("page", "lines"), [(page, lines) for page in TABLES for lines in TABLES[page]]
)
def test_every_line_is_in_the_page(page, lines):
    text, found = (DOCS / f"{page}.md").read_text(), list(lines())
    assert len(found) > 5
    assert [line for line in found if line not in text] == []
