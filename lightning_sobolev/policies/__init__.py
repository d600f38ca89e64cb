"""Policies over vector observations: any such environment of gymnasium, recorded and distilled."""

from lightning_sobolev.policies.agents import load_policy, policy_names, save_policy
from lightning_sobolev.policies.datamodule import PolicyDataModule
from lightning_sobolev.policies.environments import EnvSettings, VectorEnvironments, spaces_of
from lightning_sobolev.policies.evaluate import play_policy, visited_answers
from lightning_sobolev.policies.foreign import ForeignPolicy
from lightning_sobolev.policies.heads import DiscreteHead, GaussianHead, Head, output_map
from lightning_sobolev.policies.networks import PolicyMLP, PolicyStudent, PolicyTeacher
from lightning_sobolev.policies.recording import PolicyRecording, record_policy

__all__ = [
    "DiscreteHead", "EnvSettings", "ForeignPolicy", "GaussianHead", "Head", "PolicyDataModule",
    "PolicyMLP", "PolicyRecording", "PolicyStudent", "PolicyTeacher", "VectorEnvironments",
    "load_policy", "output_map", "play_policy", "policy_names", "record_policy", "save_policy",
    "spaces_of", "visited_answers",
]  # fmt: skip
