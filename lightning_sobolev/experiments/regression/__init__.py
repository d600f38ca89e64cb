"""Fit classical optimisation functions."""
