"""Atari: games, policies, recorded play of a teacher, and how well a policy plays."""

from lightning_sobolev.atari.agents.cards import agent_names, load_agent, save_agent
from lightning_sobolev.atari.agents.formats import ForeignAgent
from lightning_sobolev.atari.environments import (
    AtariSettings,
    Environments,
    Transition,
    games,
    num_actions,
)
from lightning_sobolev.atari.evaluate import (
    EpisodeReturns,
    OnPolicyAnswers,
    on_policy_answers,
    play,
)
from lightning_sobolev.atari.minari import export_minari, import_minari
from lightning_sobolev.atari.networks import CenteredPolicy, NatureCNN, SmallCNN, scale_pixels
from lightning_sobolev.atari.policy import Behavior, ModulePolicy, choose, log_probabilities
from lightning_sobolev.atari.recordings.dagger import DAgger
from lightning_sobolev.atari.recordings.datamodule import StatesDataModule, StoredDataModule
from lightning_sobolev.atari.recordings.dataset import SplitSizes
from lightning_sobolev.atari.recordings.format import Recording, fingerprint
from lightning_sobolev.atari.recordings.played import RecordingDataModule, RecordingOptions
from lightning_sobolev.atari.recordings.record import record

__all__ = [
    "AtariSettings", "Behavior", "CenteredPolicy", "DAgger", "Environments", "EpisodeReturns",
    "ForeignAgent", "ModulePolicy", "NatureCNN", "OnPolicyAnswers", "Recording",
    "RecordingDataModule", "RecordingOptions", "SmallCNN", "SplitSizes", "StatesDataModule",
    "StoredDataModule", "Transition", "agent_names", "choose", "export_minari", "fingerprint",
    "games", "import_minari", "load_agent", "log_probabilities", "num_actions",
    "on_policy_answers", "play", "record", "save_agent", "scale_pixels",
]  # fmt: skip
