"""Trained policies: those of the package, stored ones, and those of other libraries."""
