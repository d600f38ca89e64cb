"""Images that make a classifier err: gradient attacks and a particle swarm."""

from lightning_sobolev.adversarial.attacks import GradientAttack
from lightning_sobolev.adversarial.swarm import ParticleSwarm

__all__ = ["GradientAttack", "ParticleSwarm"]
