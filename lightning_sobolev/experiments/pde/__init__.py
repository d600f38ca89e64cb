"""Fit solutions of partial differential equations in norms of time and space."""
