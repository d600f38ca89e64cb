"""Images that make a classifier err: gradient attacks."""

from lightning_sobolev.adversarial.attacks import GradientAttack

__all__ = ["GradientAttack"]
