"""The same with a process for each part."""
