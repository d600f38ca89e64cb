"""Datasets and their LightningDataModules."""

from lightning_sobolev.data.landscape import LandscapeDataModule, Standardization

__all__ = ["LandscapeDataModule", "Standardization"]
