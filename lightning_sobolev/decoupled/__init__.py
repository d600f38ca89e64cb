"""Synthetic gradients: sections of a network that do not wait for the gradient from above."""

from lightning_sobolev.decoupled.kinds import KINDS, Kind
from lightning_sobolev.decoupled.matching import Matching
from lightning_sobolev.decoupled.messages import Message, speak
from lightning_sobolev.decoupled.models import (
    GradientModel,
    LossModel,
    ModelSettings,
    build_models,
)
from lightning_sobolev.decoupled.pipeline import Pipeline, SectionReport
from lightning_sobolev.decoupled.processes import run_processes
from lightning_sobolev.decoupled.sections import activation_shapes, split
from lightning_sobolev.decoupled.step import Step, take_step
from lightning_sobolev.decoupled.worker import Part

__all__ = [
    "KINDS",
    "GradientModel",
    "Kind",
    "LossModel",
    "Matching",
    "Message",
    "ModelSettings",
    "Part",
    "Pipeline",
    "SectionReport",
    "Step",
    "activation_shapes",
    "build_models",
    "run_processes",
    "speak",
    "split",
    "take_step",
]
