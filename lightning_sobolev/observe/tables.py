"""What every table of a call of graphs has its rows for: nodes, graphs, edges or cells.

Note [chance]
    In some batch there are as many edges as nodes, or as many cells as edges. A table is what it
    was in all batches before; where lengths leave a doubt, the call is made once more on some
    graphs, and what gives the output of the same graphs among all is right.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, islice

import torch
from torch import Tensor

from lightning_sobolev import _paths

Kinds = Mapping[_paths.Path, str]
"""What each table is."""

_MOST = 128
"""Combinations that are tried at most."""

_TELLING = ("index", "ends", "edges")

_OF_ROWS = ("node", "graph", "edge", "cells")


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The nodes, graphs and edges of a call.

    Args:
        index: Graph of each node.
        graphs: Number of graphs.
        edges: Numbers of the nodes that each edge joins; None where there are none.
    """

    index: Tensor
    graphs: int
    edges: Tensor | None

    def kinds(self, table: Tensor) -> list[str]:
        """Return what a table, or a number of the call, may be, the likeliest first."""
        if not table.ndim:  # a number
            return ["count", "whole"] if int(table) == self.graphs else ["whole"]
        index, rows, found = self.index, len(table), []
        if is_integer(table) and table.shape == index.shape and torch.equal(table.long(), index):
            found.append("index")
        if table.shape == (self.graphs + 1,) and is_integer(table):
            found += ["ends"] if torch.equal(table, ends(index, self.graphs)) else []
        edges = None if self.edges is None else self.edges.shape[1]
        if edges is not None and is_edges(table) and table.shape[1] == edges:
            found.append("edges")
        sizes = {"node": len(index), "graph": self.graphs, "edge": edges}
        found += [kind for kind, size in sizes.items() if size == rows]
        if rows and rows % self.graphs == 0 and "graph" not in found:
            found.append("cells")  # three rows for each graph
        return [*found, "whole"]

    def owners(self, kind: str, table: Tensor) -> Tensor:
        """Return the graph of every row of a table."""
        if kind == "node":
            return self.index
        if kind == "edge":
            assert self.edges is not None
            return self.index[self.edges[0].long()]
        each = len(table) // self.graphs
        return torch.arange(len(table), device=self.index.device) // max(each, 1)

    def alike(self, table: Tensor, kinds: Iterable[str]) -> list[list[str]]:
        """Put those together that give every row of a table to the same graph."""
        found: list[list[str]] = []
        for kind in kinds:
            for one in found:
                if (
                    kind in _OF_ROWS
                    and one[0] in _OF_ROWS
                    and torch.equal(self.owners(kind, table), self.owners(one[0], table))
                ):
                    one.append(kind)
                    break
            else:
                found.append([kind])
        return found


class Tables:
    """What is known of the tables of a student's calls."""

    def __init__(self) -> None:
        self._possible: dict[_paths.Path, list[str]] = {}

    def layout(self, tables: Mapping[_paths.Path, Tensor], index: Tensor, graphs: int) -> Layout:
        """Return nodes, graphs and edges; edges are what they were before."""
        edges = [
            table
            for path, table in tables.items()
            if is_edges(table) and "edges" in self._possible.get(path, ["edges"])
        ]
        return Layout(index, graphs, edges[0] if edges else None)

    def kinds(
        self, tables: Mapping[_paths.Path, Tensor], layout: Layout,
        prove: Callable[[Iterator[Kinds]], Kinds],
    ) -> Kinds:  # fmt: skip
        """Return what each table is; ``prove`` picks what is right where there is a doubt."""
        found = {path: self._classes(path, table, layout) for path, table in tables.items()}
        first = {path: classes[0][0] for path, classes in found.items()}
        if layout.graphs < 2:  # all of it is taken, whatever it is
            return first
        chosen: Kinds = first
        if found.keys() - self._possible.keys() or any(len(c) > 1 for c in found.values()):
            chosen = prove(_combinations(found))
        for path, classes in found.items():
            self._possible[path] = next(one for one in classes if chosen[path] in one)
        return chosen

    def _classes(self, path: _paths.Path, table: Tensor, layout: Layout) -> list[list[str]]:
        kinds, possible = layout.kinds(table), self._possible.get(path)
        if possible is None:  # what agrees number by number leaves no doubt
            return layout.alike(table, kinds[:1] if kinds[0] in _TELLING else kinds)
        if possible == ["whole"]:  # had no row for each of anything before
            return [possible]
        left = [kind for kind in kinds if kind in possible]
        if not left:  # it was taken for another by chance
            del self._possible[path]
        return layout.alike(table, left or kinds)


def _combinations(found: Mapping[_paths.Path, list[list[str]]]) -> Iterator[Kinds]:
    # The likeliest first, then those in which one table is something else, then two.
    first = {path: classes[0][0] for path, classes in found.items()}
    others = [(path, one[0]) for path, classes in found.items() for one in classes[1:]]
    several = chain.from_iterable(combinations(others, n) for n in range(len(found) + 1))
    single = (few for few in several if len({path for path, _ in few}) == len(few))
    return ({**first, **dict(few)} for few in islice(single, _MOST))


def ends(index: Tensor, count: int) -> Tensor:
    """Return torch-geometric's ptr: where the nodes of each graph begin, and the last ones end."""
    sizes = torch.bincount(index, minlength=count)
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def is_edges(table: Tensor) -> bool:
    """Whether a table may hold the two nodes of each edge."""
    return is_integer(table) and table.ndim == 2 and table.shape[0] == 2


def is_integer(table: Tensor) -> bool:
    """Whether a table holds whole numbers."""
    return not table.is_floating_point() and table.dtype != torch.bool
