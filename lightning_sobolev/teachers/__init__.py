"""Teachers answer "value and projected derivatives at x": networks, closed forms, tables."""

from lightning_sobolev.teachers.analytic import AnalyticTeacher
from lightning_sobolev.teachers.network import NetworkTeacher
from lightning_sobolev.teachers.tabulated import BatchTeacher, TabulatedJet

__all__ = ["AnalyticTeacher", "BatchTeacher", "NetworkTeacher", "TabulatedJet"]
