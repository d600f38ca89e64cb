"""Atari: games, policies, recorded play of a teacher, and how well a policy plays."""

from lightning_sobolev.atari.behavior import Behavior
from lightning_sobolev.atari.datamodule import RecordingDataModule
from lightning_sobolev.atari.environments import (
    AtariSettings,
    Environments,
    Transition,
    games,
    make_environments,
)
from lightning_sobolev.atari.evaluation import EpisodeReturns, play
from lightning_sobolev.atari.foreign import ForeignAgent
from lightning_sobolev.atari.minari_export import export_minari
from lightning_sobolev.atari.minari_import import import_minari
from lightning_sobolev.atari.module_policy import ModulePolicy
from lightning_sobolev.atari.networks import CenteredPolicy, NatureCNN, SmallCNN, scale_pixels
from lightning_sobolev.atari.policy import choose, log_probabilities
from lightning_sobolev.atari.recorder import record
from lightning_sobolev.atari.recording import Recording, fingerprint
from lightning_sobolev.atari.rounds import Rounds
from lightning_sobolev.atari.sampling import EvenSampler, StepLoader, StepSampler
from lightning_sobolev.atari.splits import SplitSizes
from lightning_sobolev.atari.states import RecordedStates
from lightning_sobolev.atari.stored import StoredDataModule
from lightning_sobolev.atari.visited import VisitedAnswers, visit
from lightning_sobolev.atari.zoo import agents, load_agent, save_agent

__all__ = [
    "AtariSettings",
    "Behavior",
    "CenteredPolicy",
    "Environments",
    "EpisodeReturns",
    "EvenSampler",
    "ForeignAgent",
    "ModulePolicy",
    "NatureCNN",
    "RecordedStates",
    "Recording",
    "RecordingDataModule",
    "Rounds",
    "SmallCNN",
    "SplitSizes",
    "StepLoader",
    "StepSampler",
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
