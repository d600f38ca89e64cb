"""Every test that a page names exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGES = ["layers", "reliability", "compatibility"]
NAMED = re.compile(r"`(?P<path>[\w/]+\.py)?(?:::(?P<name>\w+))?`")


def named(page):
    """Return the files and functions of a page; a name alone is of the file before it."""
    path = None
    for found in NAMED.finditer((TESTS.parent / "docs" / f"{page}.md").read_text()):
        path = found["path"] or path
        is_test = Path(path or "").name.startswith("test_")
        if is_test and (found["path"] or found["name"]):
            yield path, found["name"]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    tests = list(named(page))
    assert len(tests) > 20
    for path, name in tests:
        path = path.removeprefix("tests/")
        files = [TESTS / path, TESTS / "plugin" / path, TESTS / "kinds" / path]
        text = "".join(file.read_text() for file in files if file.is_file())
        assert text, path
        assert name is None or f"def {name}(" in text, f"{path}::{name}"
