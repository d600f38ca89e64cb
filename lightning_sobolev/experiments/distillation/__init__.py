"""Distil Atari policies."""
