"""Attacks on classifiers, and what an image tells about itself in the Fisher metric."""

from lightning_sobolev.adversarial.attacks import GradientAttack
from lightning_sobolev.adversarial.fisher import ClassGradients, class_gradients
from lightning_sobolev.adversarial.swarm import ParticleSwarm

__all__ = ["ClassGradients", "GradientAttack", "ParticleSwarm", "class_gradients"]
