"""Datasets and their LightningDataModules."""

from lightning_sobolev.data.basket_module import BasketDataModule
from lightning_sobolev.data.evolution import EvolutionDataModule
from lightning_sobolev.data.force_module import ForcesDataModule
from lightning_sobolev.data.images import ImageDataModule
from lightning_sobolev.data.landscape import LandscapeDataModule
from lightning_sobolev.data.signals import SignalDataModule

__all__ = [
    "BasketDataModule",
    "EvolutionDataModule",
    "ForcesDataModule",
    "ImageDataModule",
    "LandscapeDataModule",
    "SignalDataModule",
]
