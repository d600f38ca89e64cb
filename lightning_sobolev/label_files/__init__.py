"""Values and derivative labels from the files that people have."""

from lightning_sobolev.label_files.arrays import LabeledArrays
from lightning_sobolev.label_files.frames import LabeledFrames
from lightning_sobolev.label_files.shapes import Derivative

__all__ = ["Derivative", "LabeledArrays", "LabeledFrames"]
