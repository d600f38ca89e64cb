"""The same with a process for each section: stages that do not wait for each other."""
