"""Recorded play of a teacher: made once, checked when opened, served as batches."""
