"""Sobolev training for PyTorch Lightning.

Teach a network a target's derivatives with respect to its input, beside the target's values
(Czarnecki et al. 2017, Sobolev Training for Neural Networks, arXiv:1706.04859).
"""

from lightning_sobolev.balance import Balanced
from lightning_sobolev.callbacks import HarmCheck, KeepGenerators, StandardUnits
from lightning_sobolev.functional.norms import TimeSpaceNorm
from lightning_sobolev.plugin import CompileSettings, SobolevCallback, SobolevMixin
from lightning_sobolev.spec import Cosine, Linear, SobolevSpec, SobolevTerm, Step
from lightning_sobolev.standardization import Standardized, Standardizer
from lightning_sobolev.teachers import (
    AnalyticTeacher,
    BatchTeacher,
    CachedTeacher,
    CacheSettings,
    DirectionalTeacher,
    NetworkTeacher,
    cache_answers,
)

__version__ = "0.1.0"

__all__ = [
    "AnalyticTeacher", "Balanced", "BatchTeacher", "CacheSettings", "CachedTeacher",
    "CompileSettings", "Cosine", "DirectionalTeacher", "HarmCheck", "KeepGenerators", "Linear",
    "NetworkTeacher", "SobolevCallback", "SobolevMixin", "SobolevSpec", "SobolevTerm",
    "StandardUnits", "Standardized", "Standardizer", "Step", "TimeSpaceNorm", "__version__",
    "cache_answers",
]  # fmt: skip
