"""Fixtures that every test may ask for."""

import zlib

import pytest
import torch


class SeededGenerator(torch.Generator):
    """A CPU generator that shows its seed when a test fails."""

    def __repr__(self):
        return f"SeededGenerator(seed={self.initial_seed()})"


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
