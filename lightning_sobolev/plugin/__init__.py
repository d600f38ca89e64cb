"""The Lightning side: one observed forward, entered by a callback or a mixin."""

from lightning_sobolev.plugin.callback import SobolevCallback
from lightning_sobolev.plugin.compiling import CompileSettings
from lightning_sobolev.plugin.generators import KeepGenerators
from lightning_sobolev.plugin.harm import HarmCheck
from lightning_sobolev.plugin.mixin import SobolevMixin
from lightning_sobolev.plugin.standard_units import StandardUnits

__all__ = [
    "CompileSettings", "HarmCheck", "KeepGenerators", "SobolevCallback", "SobolevMixin",
    "StandardUnits",
]  # fmt: skip
