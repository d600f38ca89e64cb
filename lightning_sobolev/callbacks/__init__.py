"""Companions of the Sobolev callback: a twin without terms, standardized units, generators."""

from lightning_sobolev.callbacks.generators import KeepGenerators
from lightning_sobolev.callbacks.harm import HarmCheck
from lightning_sobolev.callbacks.standard_units import StandardUnits

__all__ = ["HarmCheck", "KeepGenerators", "StandardUnits"]
