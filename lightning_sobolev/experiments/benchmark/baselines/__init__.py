"""Kriging and JENN on the same points."""
