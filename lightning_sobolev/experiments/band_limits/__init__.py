"""Classifiers with band-limited convolutions."""
