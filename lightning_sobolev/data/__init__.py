"""Datasets and their LightningDataModules."""

from lightning_sobolev.data.images import ImageDataModule
from lightning_sobolev.data.landscape import LandscapeDataModule, Standardization

__all__ = ["ImageDataModule", "LandscapeDataModule", "Standardization"]
