"""Companions of the Sobolev callback, each useful by itself."""

from lightning_sobolev.callbacks.generators import KeepGenerators
from lightning_sobolev.callbacks.harm import HarmCheck
from lightning_sobolev.callbacks.standard_units import StandardUnits

__all__ = ["HarmCheck", "KeepGenerators", "StandardUnits"]
