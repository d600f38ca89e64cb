"""Callbacks go without the doctor, half the time of a fit, unless it is what is tested."""

import functools

import pytest

from lightning_sobolev import SobolevCallback

ORIGINAL = SobolevCallback.__init__


@pytest.fixture(autouse=True)
def _no_doctor(monkeypatch):
    @functools.wraps(ORIGINAL)
    def without(self, *args, **kwargs):
        ORIGINAL(self, *args, **{"doctor": False, **kwargs})

    monkeypatch.setattr(SobolevCallback, "__init__", without)


@pytest.fixture
def doctor(_no_doctor, monkeypatch):
    """Let callbacks have the doctor, as users do."""
    monkeypatch.setattr(SobolevCallback, "__init__", ORIGINAL)
