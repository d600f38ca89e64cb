"""Atari: games, policies, recorded play of a teacher, and how well a policy plays."""

from lightning_sobolev.atari.behavior import Behavior
from lightning_sobolev.atari.environments import (
    AtariSettings,
    Environments,
    Transition,
    games,
    make_environments,
)
from lightning_sobolev.atari.evaluation import EpisodeReturns, play
from lightning_sobolev.atari.foreign import ForeignAgent
from lightning_sobolev.atari.minari import export_minari, import_minari
from lightning_sobolev.atari.module_policy import ModulePolicy
from lightning_sobolev.atari.networks import CenteredPolicy, NatureCNN, SmallCNN, scale_pixels
from lightning_sobolev.atari.policy import choose, log_probabilities
from lightning_sobolev.atari.recordings.dagger import DAgger
from lightning_sobolev.atari.recordings.datamodule import (
    RecordingDataModule,
    RecordingOptions,
    StoredDataModule,
)
from lightning_sobolev.atari.recordings.dataset import SplitSizes
from lightning_sobolev.atari.recordings.format import Recording, fingerprint
from lightning_sobolev.atari.recordings.record import record
from lightning_sobolev.atari.visited import VisitedAnswers, visit
from lightning_sobolev.atari.zoo import agents, load_agent, save_agent

__all__ = [
    "AtariSettings",
    "Behavior",
    "CenteredPolicy",
    "DAgger",
    "Environments",
    "EpisodeReturns",
    "ForeignAgent",
    "ModulePolicy",
    "NatureCNN",
    "Recording",
    "RecordingDataModule",
    "RecordingOptions",
    "SmallCNN",
    "SplitSizes",
    "StoredDataModule",
    "Transition",
    "VisitedAnswers",
    "agents",
    "choose",
    "export_minari",
    "fingerprint",
    "games",
    "import_minari",
    "load_agent",
    "log_probabilities",
    "make_environments",
    "play",
    "record",
    "save_agent",
    "scale_pixels",
    "visit",
]
