"""Attacks on classifiers and what they reveal."""
