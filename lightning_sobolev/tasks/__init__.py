"""The experiments: LightningModules, one run from its configuration, and reports over many."""

from lightning_sobolev.tasks.distillation import DistillationModule
from lightning_sobolev.tasks.regression import RegressionModule

__all__ = ["DistillationModule", "RegressionModule"]
