"""Fixtures that every test may ask for."""

import functools
import gc
import logging
import sys
import zlib
from pathlib import Path

import pytest
import torch

from tests._compatibility import write_tables

ROWS = pytest.StashKey[list]()


class SeededGenerator(torch.Generator):
    """A CPU generator that shows its seed when a test fails."""

    def __repr__(self):
        return f"SeededGenerator(seed={self.initial_seed()})"


@pytest.fixture(autouse=True)
def _level_of_lightnings_log():
    """Put back what a benchmark has turned down: other tests read what users are told."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def generator(request):
    """Return a generator whose seed comes from the test's name: the same in every run."""
    generator = SeededGenerator()
    generator.manual_seed(zlib.crc32(request.node.name.encode()))
    return generator


@pytest.fixture
def float64():
    """Make float64 the default for one test: laws are checked to rounding error."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pytest_addoption(parser):
    parser.addoption(
        "--write-compatibility",
        metavar="PAGE",
        help="replace those tables of PAGE whose rows this run has measured",
    )
    parser.addoption(
        "--mutant",
        metavar="NAME",
        help="break the package as tests/_mutants.py says; pass if tests of enough files fail",
    )


def pytest_configure(config):
    name = config.getoption("--mutant")
    if name is not None:
        from tests._mutants import BrokenPackage

        config.pluginmanager.register(BrokenPackage(name))


@pytest.fixture
def deviation(request):
    """Measure how far a result is from its reference; a row of docs/compatibility.md."""
    config = request.config
    if config.stash.get(ROWS, None) is None:
        config.stash[ROWS] = []

    def measure(table, *columns, found, expected):
        distance = float((found - expected).norm() / expected.norm())
        test = request.node.nodeid.split("[")[0]
        config.stash[ROWS].append((table, *columns, distance, test))
        return distance

    return measure


def pytest_sessionfinish(session):
    page = session.config.getoption("--write-compatibility")
    if page is not None:
        write_tables(Path(page), session.config.stash.get(ROWS, []))


def pytest_collection_finish():
    """Spare trainers, that is nearly every test, what is slow and the same each time."""
    gc.collect()
    gc.freeze()
    # Every Trainer reads the metadata of all installed packages: a third of a small fit.
    registry = sys.modules.get("lightning.fabric.utilities.registry")
    if registry is not None:
        registry.entry_points = functools.cache(registry.entry_points)
