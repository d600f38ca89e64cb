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


def cut_to_groups(seen: "Observed", graphs: Tensor) -> GroupCut:
    """Return the cut of a call's arguments to some graphs."""
    call, groups = seen.call, seen.call.groups
    assert groups is not None
    index = torch.arange(groups.count, device=seen.x.device) if call.index is None else call.index
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
    return GroupCut(torch.cat(rows), torch.cat(numbers), few, left, partial(_take, chosen, index))


def _take(chosen: _Chosen, index: Tensor, inputs: Inputs) -> Inputs:
    tables = [(path, table) for path, table in _paths.tensors(inputs) if table.ndim]
    edges = next((table for _, table in tables if _is_edges(table)), None)
    kept = None if edges is None else torch.isin(edges, chosen.nodes).all(0)
    cut = inputs
    for path in _batches(inputs, ()):
        whole = _paths.get(inputs, path, "groups")
        part = type(whole).from_data_list(whole.index_select(chosen.graphs))
        for name, _ in _paths.tensors(whole):
            if not _paths.has(part, name[0]):  # set behind the making of the batch
                setattr(part, str(name[0]), _paths.get(whole, name[:1], "groups"))
        cut = _paths.put(cut, path, part)
    done = {path for path, table in tables if _paths.get(cut, path, "groups") is not table}
    for path, table in tables:
        taken = table if path in done else _taken(table, chosen, index, kept)
        if taken is not table:
            cut = _paths.put(cut, path, taken)
    return cut


def _taken(table: Tensor, chosen: _Chosen, index: Tensor, kept: Tensor | None) -> Tensor:
    is_integer = not table.is_floating_point() and table.dtype != torch.bool
    _, graphs = chosen.sizes
    if table.shape == index.shape and is_integer and torch.equal(table.long(), index):
        return torch.searchsorted(chosen.graphs, table.long()[chosen.nodes]).to(table.dtype)
    if table.shape == (graphs + 1,) and is_integer and torch.equal(table, _ends(index, graphs)):
        left = torch.searchsorted(chosen.graphs, index[chosen.nodes])
        return _ends(left, len(chosen.graphs)).to(table.dtype)
    if kept is not None and _is_edges(table) and table.shape[1] == len(kept):
        return chosen.renumbered[table[:, kept].long()].to(table.dtype)
    if table.shape[0] in chosen.sizes:
        return table.index_select(0, chosen.numbers(table.shape[0]).to(table.device))
    if kept is not None and table.shape[0] == len(kept):
        return table[kept]
    if table.shape[0] and table.shape[0] % graphs == 0:  # cells: three rows for each graph
        each = table.reshape(graphs, -1, *table.shape[1:])
        return each.index_select(0, chosen.graphs.to(table.device)).flatten(0, 1)
    return table


def _ends(index: Tensor, count: int) -> Tensor:
    # torch-geometric's ptr: where the nodes of each graph begin, and where the last ones end.
    sizes = torch.bincount(index, minlength=count)
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _is_edges(table: Tensor) -> bool:
    is_integer = not table.is_floating_point() and table.dtype != torch.bool
    return is_integer and table.ndim == 2 and table.shape[0] == 2


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
