"""Values and derivative labels from the files that people have."""

from lightning_sobolev.label_files.arrays import LabelFile
from lightning_sobolev.label_files.graphs import GraphFile, graph_collate

__all__ = ["GraphFile", "LabelFile", "graph_collate"]
