"""Classifiers with noise on their weights."""
