"""Output rows that belong to several input rows: graphs whose nodes stand in one flat table.

Row g of the output depends on all input rows i with ``index[i] = g`` and on no other. Then one pass
over the batch gives the derivative of every graph: a cotangent is drawn for each output row and
reaches the input rows by the index; what input rows push forward is summed into their output row.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class Block(NamedTuple):
    """One of several inputs that stand below one another: its rows, and the shape of a row."""

    rows: int
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Number of elements of a row."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Which output row every input row belongs to.

    Args:
        index: Number of the output row, for every input row.
        count: Number of groups.
        blocks: Where several inputs have different numbers of rows: those of each. They stand below
            one another, every row filled up with zeros to the longest.
        per_row: Whether the output has a row for each input row instead of one for each group.
        numbers: Numbers of the groups among those of the batch; None for all.
    """

    index: Int[Tensor, " rows"]
    count: int
    blocks: tuple[Block, ...] = ()
    per_row: bool = False
    numbers: Int[Tensor, " groups"] | None = None

    @property
    def outputs(self) -> int:
        """Number of output rows."""
        return len(self.index) if self.per_row else self.count

    def spread(self, cotangents: Shaped[Tensor, "proj outputs *out"]) -> Tensor:
        """Give every input row the cotangent of its output row."""
        return cotangents if self.per_row else cotangents.index_select(1, self.index)

    def summed(self, rows: Shaped[Tensor, "proj rows *rest"]) -> Tensor:
        """Sum over the input rows of every group."""
        total = rows.new_zeros(len(rows), self.count, *rows.shape[2:])
        return total.index_add(1, self.index, rows)

    def sizes(self) -> Int[Tensor, " groups"]:
        """Number of input rows of every group."""
        return torch.bincount(self.index, minlength=self.count)

    def parts(self) -> list[slice]:
        """Rows of each input among all."""
        if not self.blocks:
            return [slice(0, len(self.index))]
        ends = torch.tensor([block.rows for block in self.blocks]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return [slice(start, end) for start, end in zip(starts, ends, strict=True)]

    def filled_up(self, device: torch.device) -> Shaped[Tensor, "rows width"] | None:
        """Say which elements were only filled up; None where there are none."""
        if not self.blocks:
            return None
        widths = torch.tensor([block.width for block in self.blocks], device=device)
        each = torch.tensor([block.rows for block in self.blocks], device=device)
        width = int(widths.max())
        return torch.arange(width, device=device) >= widths.repeat_interleave(each)[:, None]


def basis_of_groups(
    groups: Groups, like: Tensor, count: int | None, generator: torch.Generator
) -> Float[Tensor, "proj rows *rest"]:
    r"""Return basis directions of whole groups, each one element of one of a group's rows.

    With E elements in a group, directions are distinct and times :math:`\sqrt E`, or, where there
    are more directions than elements, all of them and zeros times :math:`\sqrt{count}`: the mean
    over projections is :math:`|J|_F^2`. One element of every row at once would add up what
    different rows push forward. ``count=None`` is as many as the largest group has elements.
    """
    filled, device = groups.filled_up(generator.device), generator.device
    flat = like.flatten(1) if like.ndim > 1 else like[:, None]
    exists = torch.ones(flat.shape, dtype=torch.bool, device=device) if filled is None else ~filled
    rows, elements = exists.nonzero(as_tuple=True)
    owner = groups.index.to(device)[rows]
    sizes = torch.bincount(owner, minlength=groups.count)
    order = torch.arange(len(owner), device=device)
    if count is not None:
        scores = torch.rand(len(owner), generator=generator, device=device)
        order = scores.argsort()
    order = order[owner[order].argsort(stable=True)]  # group after group
    starts = sizes.cumsum(0) - sizes
    number = torch.arange(len(owner), device=device) - starts[owner[order]]
    count = int(sizes.max()) if count is None else count
    taken = order[number < count]
    directions = torch.zeros(count, *flat.shape, dtype=torch.float64, device=device)
    scale = sizes.clamp_min(count).double().sqrt()[owner[taken]]
    directions[number[number < count], rows[taken], elements[taken]] = scale
    return directions.reshape(count, *like.shape).to(device=like.device, dtype=like.dtype)


def stacked(tensors: list[Tensor], fill: float = 0.0) -> Tensor:
    """Put tables of different widths below one another; ``[rows, *shape]`` each."""
    flat = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors]
    width = max(part.shape[1] for part in flat)
    return torch.cat(
        [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in flat]
    )


def unstacked(point: Tensor, blocks: tuple[Block, ...]) -> list[Tensor]:
    """Take :func:`stacked` tables apart."""
    tables = torch.split(point, [block.rows for block in blocks])
    return [
        table[:, : block.width].reshape(block.rows, *block.shape)
        for table, block in zip(tables, blocks, strict=True)
    ]


def grouped(
    index: Int[Tensor, " nodes"] | None, blocks: tuple[Block, ...], rows: int, outputs: int, *,
    pools: bool = False,
) -> Groups:  # fmt: skip
    """Find the group of every input row, from the index of the nodes and the numbers of rows.

    Args:
        index: Group of each node; None for inputs that have the output's rows.
        blocks: Inputs that stand below one another.
        rows: Number of input rows where there is one input.
        outputs: Number of rows of the output.
        pools: Whether it has those of groups also where there are as many as input rows.

    Raises:
        ValueError: If an input has neither the nodes' nor the output's number of rows.

    Returns:
        The groups.
    """
    if index is not None and len(index) and (index.is_cpu or len(index) == outputs):
        count = int(index.max()) + 1  # elsewhere looking at a number waits for the device
        if count > outputs or int(index.min()) < 0:
            raise ValueError(
                f"groups must number the {outputs} rows of the output from zero, got numbers from "
                f"{int(index.min())} to {count - 1}"
            )
        if not blocks and rows == outputs > count and not pools:
            return Groups(index, count, per_row=True)
    if not blocks:
        assert index is not None
        return Groups(index, outputs)
    parts = []
    for block in blocks:
        if index is not None and block.rows == len(index):
            parts.append(index)
        elif block.rows == outputs:
            parts.append(torch.arange(outputs, device=None if index is None else index.device))
        else:
            nodes = "without groups=" if index is None else f"{len(index)} as groups="
            raise ValueError(
                "wrt: several inputs must have the same number of rows, or as many as groups= or "
                f"the output has ({nodes}, output {outputs}), got {[b.rows for b in blocks]}"
            )
    return Groups(torch.cat(parts), outputs, blocks)


def check_told_apart(groups: Groups, blocks: tuple[Block, ...]) -> None:
    """Refuse inputs of which nobody can say whether their rows are nodes or groups.

    Raises:
        ValueError: If there are as many nodes as groups, and node i is not group i.
    """
    index = groups.index
    own = torch.arange(len(index), device=index.device)
    if not blocks and not groups.per_row and not torch.equal(index, own):
        raise ValueError(
            "wrt: several inputs must have rows of nodes or of graphs that can be told apart, got "
            f"{groups.count} of both in one batch, of which some graphs have no node or stand in "
            "another order; leave empty graphs out, or sort the nodes"
        )
