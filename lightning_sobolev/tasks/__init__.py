"""The experiments: LightningModules, one run from its configuration, and reports over many."""

from lightning_sobolev.tasks.classification import ClassifierModule
from lightning_sobolev.tasks.decoupled import DecoupledModule
from lightning_sobolev.tasks.distillation import DistillationModule
from lightning_sobolev.tasks.force_field import ForceFieldModule
from lightning_sobolev.tasks.regression import RegressionModule

__all__ = [
    "ClassifierModule",
    "DecoupledModule",
    "DistillationModule",
    "ForceFieldModule",
    "RegressionModule",
]
