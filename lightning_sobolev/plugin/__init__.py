"""The Lightning side: one observed forward, entered by a callback or a mixin."""

from lightning_sobolev.plugin.callback import SobolevCallback
from lightning_sobolev.plugin.compiling import CompileSettings
from lightning_sobolev.plugin.mixin import SobolevMixin

__all__ = ["CompileSettings", "SobolevCallback", "SobolevMixin"]
