"""A call cut to some of its graphs: nodes, edges and graphs of one flat batch, numbered anew."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._groups import Block
from lightning_sobolev.observe.call import GroupCut
from lightning_sobolev.observe.places import Inputs
from lightning_sobolev.observe.tables import Kinds, Layout, ends

if TYPE_CHECKING:
    from lightning_sobolev.observe.recorder import Observed


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Which graphs and nodes are kept, and the new numbers of the nodes."""

    graphs: Tensor
    nodes: Tensor
    renumbered: Tensor
    sizes: tuple[int, int]

    @classmethod
    def of(cls, graphs: Tensor, index: Tensor, count: int) -> "_Chosen":
        kept = torch.zeros(count, dtype=torch.bool, device=index.device)
        kept[graphs] = True
        is_node = kept[index]
        renumbered = is_node.cumsum(0) - 1
        return cls(graphs, is_node.nonzero()[:, 0], renumbered, (len(index), count))

    def numbers(self, rows: int) -> Tensor:
        """Return what is kept of a table with a row for each node or graph."""
        return self.nodes if rows == self.sizes[0] else self.graphs


def outputs_of(seen: "Observed", graphs: Tensor) -> Tensor:
    """Return the rows of the output that some graphs have."""
    groups = seen.call.groups
    assert groups is not None
    if not groups.per_row:
        return graphs
    return torch.isin(groups.index, graphs).nonzero()[:, 0]


def index_of(seen: "Observed") -> Tensor:
    """Return the graph of each node."""
    call, groups = seen.call, seen.call.groups
    assert groups is not None
    return torch.arange(groups.count, device=seen.x.device) if call.index is None else call.index


def tables_of(seen: "Observed") -> dict[_paths.Path, Tensor]:
    """Return the tables and numbers of a call's arguments, without the observed input."""
    call = seen.call
    inputs = call.inputs if call.outer is None else call.outer
    observed = call.place.paths if call.outer is None else ()
    found = {p: t for p, t in _paths.tensors(inputs) if t.ndim and p not in observed}
    return found | {path: torch.tensor(number) for path, number in _numbers(inputs, ())}


def _numbers(tree: Any, path: _paths.Path) -> Iterator[tuple[_paths.Path, int]]:
    if type(tree) is int:  # perhaps that of the graphs
        yield path, tree
    elif isinstance(tree, dict):
        for key, child in tree.items():
            yield from _numbers(child, (*path, key))
    elif type(tree) in (list, tuple):
        for key, child in enumerate(tree):
            yield from _numbers(child, (*path, key))


def cut_to_groups(seen: "Observed", graphs: Tensor, layout: Layout, kinds: Kinds) -> GroupCut:
    """Return the cut of a call's arguments, of which each is of a kind, to some graphs."""
    groups, index = seen.call.groups, layout.index
    assert groups is not None
    graphs = graphs.to(index.device).sort().values
    chosen = _Chosen.of(graphs, index, groups.count)
    blocks = groups.blocks or (Block(len(index), ()),)
    numbers = [chosen.numbers(block.rows) for block in blocks]
    rows = [part.start + own for part, own in zip(groups.parts(), numbers, strict=True)]
    renumbered = torch.searchsorted(graphs, groups.index[torch.cat(rows)])
    few = replace(
        groups,
        index=renumbered,
        count=len(graphs),
        blocks=tuple(Block(len(n), b.shape) for n, b in zip(numbers, groups.blocks, strict=False)),
        numbers=graphs,
    )
    left = torch.searchsorted(graphs, index[chosen.nodes])
    return GroupCut(
        torch.cat(rows), torch.cat(numbers), few, left, partial(_take, chosen, layout, kinds)
    )


def _take(chosen: _Chosen, layout: Layout, kinds: Kinds, inputs: Inputs) -> Inputs:
    cut = inputs
    for path in _batches(inputs, ()):
        whole = _paths.get(inputs, path, "groups")
        part = type(whole).from_data_list(whole.index_select(chosen.graphs))
        for name, _ in _paths.tensors(whole):
            if not _paths.has(part, name[0]):  # set behind the making of the batch
                setattr(part, str(name[0]), _paths.get(whole, name[:1], "groups"))
        cut = _paths.put(cut, path, part)
    tables = [(path, table) for path, table in _paths.tensors(inputs) if table.ndim]
    done = {path for path, table in tables if _paths.get(cut, path, "groups") is not table}
    for path in (path for path, kind in kinds.items() if kind == "count"):
        cut = _paths.put(cut, path, len(chosen.graphs))
    for path, table in tables:
        kind = kinds.get(path) or layout.kinds(table)[0]
        taken = table if path in done else _taken(table, kind, chosen, layout)
        if taken is not table:
            cut = _paths.put(cut, path, taken)
    return cut


def _taken(table: Tensor, kind: str, chosen: _Chosen, layout: Layout) -> Tensor:
    left = torch.searchsorted(chosen.graphs, layout.index[chosen.nodes])
    if kind == "whole":
        return table
    if kind == "index":
        return left.to(table.dtype)
    if kind == "ends":
        return ends(left, len(chosen.graphs)).to(table.dtype)
    if kind in ("edges", "edge"):
        assert layout.edges is not None
        kept = torch.isin(layout.edges, chosen.nodes).all(0)
        return table[kept] if kind == "edge" else chosen.renumbered[table[:, kept].long()].to(table)
    if kind == "node":
        return table.index_select(0, chosen.nodes.to(table.device))
    each = table.reshape(layout.graphs, -1, *table.shape[1:])  # of a graph, or of its cell
    return each.index_select(0, chosen.graphs.to(table.device)).flatten(0, 1)


def _batches(tree: Any, path: _paths.Path) -> Iterator[_paths.Path]:
    # Batches of torch-geometric can be taken apart themselves: they know what an edge is.
    if hasattr(tree, "index_select") and hasattr(type(tree), "from_data_list"):
        yield path
    elif isinstance(tree, dict):
        for key, child in tree.items():
            yield from _batches(child, (*path, key))
    elif type(tree) in (list, tuple):
        for key, child in enumerate(tree):
            yield from _batches(child, (*path, key))
