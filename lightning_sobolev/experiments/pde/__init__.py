"""Fit solutions of evolution equations."""
