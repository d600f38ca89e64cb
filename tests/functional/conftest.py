import pytest


@pytest.fixture(autouse=True)
def _always_float64(float64):
    """Every test in this folder checks a law to rounding error."""
