"""Sobolev training for PyTorch Lightning.

Teach a network a target's derivatives with respect to its input, beside the target's values
(Czarnecki et al. 2017, Sobolev Training for Neural Networks, arXiv:1706.04859).
"""

from lightning_sobolev._types import Directions, Jet, Query, Teacher
from lightning_sobolev.callbacks import HarmCheck, KeepGenerators, StandardUnits
from lightning_sobolev.doctor import Foresight, LabelReport, examine_labels, foresight
from lightning_sobolev.functional.norms import TimeSpaceNorm
from lightning_sobolev.label_files import GraphFile, LabelFile, graph_collate
from lightning_sobolev.loss.balance import Balanced
from lightning_sobolev.loss.compiling import CompileSettings
from lightning_sobolev.loss.loss import SobolevLoss
from lightning_sobolev.loss.report import Report
from lightning_sobolev.plugin import SobolevCallback, SobolevMixin
from lightning_sobolev.points import Mixup, Noise, Recombine, Shift
from lightning_sobolev.queries import with_queries
from lightning_sobolev.spec import Cosine, Linear, SobolevSpec, SobolevTerm, Step
from lightning_sobolev.standardization import Standardized, Standardizer
from lightning_sobolev.teachers import (
    AdjointTeacher,
    AnalyticTeacher,
    BatchTeacher,
    CachedTeacher,
    CacheSettings,
    DirectionalTeacher,
    MixedTeacher,
    NetworkTeacher,
    ReducedTeacher,
    TeacherChoice,
    TraceTeacher,
    cache_answers,
)

__version__ = "0.1.0"

__all__ = [
    "AdjointTeacher",
    "AnalyticTeacher",
    "Balanced",
    "BatchTeacher",
    "CacheSettings",
    "CachedTeacher",
    "CompileSettings",
    "Cosine",
    "DirectionalTeacher",
    "Directions",
    "Foresight",
    "GraphFile",
    "HarmCheck",
    "Jet",
    "KeepGenerators",
    "LabelFile",
    "LabelReport",
    "Linear",
    "MixedTeacher",
    "Mixup",
    "NetworkTeacher",
    "Noise",
    "Query",
    "Recombine",
    "ReducedTeacher",
    "Report",
    "Shift",
    "SobolevCallback",
    "SobolevLoss",
    "SobolevMixin",
    "SobolevSpec",
    "SobolevTerm",
    "StandardUnits",
    "Standardized",
    "Standardizer",
    "Step",
    "Teacher",
    "TeacherChoice",
    "TimeSpaceNorm",
    "TraceTeacher",
    "__version__",
    "cache_answers",
    "examine_labels",
    "foresight",
    "graph_collate",
    "with_queries",
]
