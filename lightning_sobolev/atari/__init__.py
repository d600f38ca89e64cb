"""Atari: games, policies, recorded play of a teacher, and how well a policy plays."""

from lightning_sobolev.atari.agents.cards import agent_names, load_agent, save_agent
from lightning_sobolev.atari.agents.formats import ForeignAgent
from lightning_sobolev.atari.datamodule import RecordingDataModule
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
from lightning_sobolev.atari.minari_export import export_minari
from lightning_sobolev.atari.minari_import import import_minari
from lightning_sobolev.atari.networks import CenteredPolicy, NatureCNN, SmallCNN, scale_pixels
from lightning_sobolev.atari.policy import Behavior, ModulePolicy, choose, log_probabilities
from lightning_sobolev.atari.recorder import record
from lightning_sobolev.atari.recording import Recording, fingerprint
from lightning_sobolev.atari.rounds import Rounds
from lightning_sobolev.atari.sampling import EvenSampler, StepLoader, StepSampler
from lightning_sobolev.atari.splits import SplitSizes
from lightning_sobolev.atari.states import RecordedStates
from lightning_sobolev.atari.stored import StoredDataModule

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
    "OnPolicyAnswers",
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
    "agent_names",
    "choose",
    "export_minari",
    "fingerprint",
    "games",
    "import_minari",
    "load_agent",
    "log_probabilities",
    "num_actions",
    "on_policy_answers",
    "play",
    "record",
    "save_agent",
    "scale_pixels",
]
