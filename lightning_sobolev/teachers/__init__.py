"""Teachers answer "value and projected derivatives at x": networks, closed forms, tables."""

from lightning_sobolev.teachers.analytic import AnalyticTeacher
from lightning_sobolev.teachers.cached import CachedTeacher
from lightning_sobolev.teachers.caching import cache_answers
from lightning_sobolev.teachers.choice import TeacherChoice
from lightning_sobolev.teachers.directional import AdjointTeacher, DirectionalTeacher
from lightning_sobolev.teachers.mixed import MixedTeacher
from lightning_sobolev.teachers.network import NetworkTeacher
from lightning_sobolev.teachers.reduced import ReducedTeacher
from lightning_sobolev.teachers.stored import CacheSettings
from lightning_sobolev.teachers.tabulated import BatchTeacher, TabulatedJet
from lightning_sobolev.teachers.trace import TraceTeacher

__all__ = [
    "AdjointTeacher", "AnalyticTeacher", "BatchTeacher", "CacheSettings", "CachedTeacher",
    "DirectionalTeacher",
    "MixedTeacher", "NetworkTeacher", "ReducedTeacher", "TabulatedJet", "TeacherChoice",
    "TraceTeacher", "cache_answers",
]  # fmt: skip
