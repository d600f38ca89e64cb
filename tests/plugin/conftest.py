"""Callbacks go without the doctor, half the time of a fit, unless it is what is tested."""

import pytest

from lightning_sobolev import SobolevCallback

DEFAULTS = SobolevCallback.__init__.__kwdefaults__


@pytest.fixture(autouse=True)
def _no_doctor(monkeypatch):
    monkeypatch.setitem(DEFAULTS, "doctor", False)


@pytest.fixture
def doctor(_no_doctor, monkeypatch):
    """Let callbacks have the doctor, as users do."""
    monkeypatch.setitem(DEFAULTS, "doctor", True)
