r"""From distances to a term: divided by its scale, reduced once.

.. math:: \text{term}_j = \frac{1}{s_j\,|R|} \sum_{(p, b) \in R} \ell_{jpb}

``R`` are the (projection, row) pairs with any known target entry and :math:`s_j` the running mean
of :math:`\ell_j(0, \cdot)`, or 1. Where rows are nodes of graphs, each pair counts its share.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._groups import Groups
from lightning_sobolev.loss.compare import Comparison, Share
from lightning_sobolev.spec import SobolevTerm

SumOverProcesses = Callable[[Tensor], Tensor]
"""Sums a small vector over processes, so that all of them use one scale and one count."""


@dataclass(slots=True)
class RunningScales:
    """Running mean of each term's reference: plain at first, exponential after ``memory``."""

    memory: int = 100
    state: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    frozen: bool = False
    """Whether a batch is divided by what is there and leaves it alone: in validation."""

    def update(self, key: str, batch_mean: Tensor) -> Tensor:
        """Take in one batch's mean and return the scale."""
        mean, count = self.state.get(key) or (batch_mean, 0)
        if mean.dtype != batch_mean.dtype or mean.device != batch_mean.device:
            mean = mean.to(batch_mean)
        if self.frozen and count:
            return mean
        # Looking at a number makes everybody wait: only where a constant target can show itself.
        if count == 0 and float(batch_mean.sum()) <= 0.0:  # NaN is found in the target itself
            raise ValueError(
                f"the target of term {key!r} must not vanish when it is normalized, got a mean of "
                f"{float(batch_mean.sum())}; use normalize='none' if a zero derivative is what you "
                "teach"
            )
        if self.frozen:
            return batch_mean
        mean = torch.lerp(mean, batch_mean, 1.0 / min(count + 1, self.memory))
        self.state[key] = (mean, count + 1)
        return mean


def in_groups(term: SobolevTerm, comparison: Comparison, groups: Groups) -> Comparison:
    """Say what the rows of a comparison count, so that a weight means the same for any graph.

    Derivatives in input space have a row for each node, those in output space a row for each graph,
    which is a sum over its nodes. Values are averaged over graphs, or over nodes that have them.

    Returns:
        The comparison, with its shares.

    Raises:
        ValueError: If elements are compared of inputs that have different ones.
    """
    kind = comparison.distance
    of_nodes = groups.per_row
    if term.needs_cotangents:  # else what a teacher reads of nodes
        of_nodes = kind.shape[1] == len(groups.index)
    if not of_nodes and (term.order == 0 or term.needs_cotangents):
        return comparison
    if groups.blocks and term.normalize == "elements":
        raise ValueError(
            f"normalize of term {term.key!r} must be 'target' or 'none' where wrt names inputs "
            "with different numbers of rows, got 'elements'"
        )
    if of_nodes and term.average == "node" and not groups.blocks:
        return comparison  # the mean over all rows that are known
    shares = _of_nodes(term, kind, groups) if of_nodes else [_of_graphs(term, kind, groups)]
    return replace(comparison, shares=shares)


def _of_graphs(term: SobolevTerm, distance: Tensor, groups: Groups) -> Share:
    # E|J v|^2 is the sum over the nodes; a graph without any counts nothing.
    sizes = groups.sizes().to(distance.dtype)
    each = _one(distance) * (sizes > 0)
    if term.average == "node":
        return Share(slice(0, len(sizes)), each, each * sizes)
    return Share(slice(0, len(sizes)), each / sizes.clamp_min(1.0), each)


def _of_nodes(term: SobolevTerm, distance: Tensor, groups: Groups) -> list[Share]:
    shares, one = [], _one(distance)
    for block, part in enumerate(groups.parts()):
        index = groups.index[part]
        each = one.expand(len(index))
        if term.average == "graph":
            own = torch.bincount(index, minlength=groups.count).to(distance.dtype)
            each = (one / own.clamp_min(1.0))[index]
        shares.append(Share(part, each, each, block))
    return shares


def _one(distance: Tensor) -> Tensor:
    # Other calls and other processes may have another number of projections.
    return distance.new_ones(()) / max(len(distance), 1)


def reduce(
    term: SobolevTerm,
    comparison: Comparison,
    scales: RunningScales,
    sum_over_processes: SumOverProcesses | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
    """Return a term as its unweighted mean, divided by its running scale, and the target's size.

    The mean is over known (projection, row) pairs, zero when there is none. Where several processes
    train, each divides by its share of all pairs known to any of them: the mean of their gradients
    is that of one process with all rows. ``scales`` are changed in place. The size is the sum that
    the scale is made of; it must be finite.
    """
    distance, known = comparison.distance, comparison.known
    pairs = distance.shape[0] * distance.shape[1]
    reference = comparison.reference
    if comparison.shares is not None:
        return _reduced_by_shares(term, comparison, scales, sum_over_processes)
    if known is None and sum_over_processes is None:
        if not pairs:  # nothing is known in this batch: zero, and the scale stays
            return distance.sum(), None
        mean = distance.mean() if distance.ndim == 2 else distance.mean((0, 1))
        if reference is None:
            return mean, None
        energy = reference.mean() if reference.ndim == 2 else reference.mean((0, 1))
        scale = scales.update(term.key, energy)
        if term.normalize == "elements":
            return by_element(mean, scale), energy.sum()
        return mean / scale, energy
    return _reduced_together(term, comparison, scales, sum_over_processes)


def _reduced_together(
    term: SobolevTerm, comparison: Comparison, scales: RunningScales,
    sum_over_processes: SumOverProcesses | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    known, dtype = comparison.known, comparison.distance.dtype
    weights = None if known is None else known.to(dtype)
    total, count = _known_sum(comparison.distance, weights)
    reference = comparison.reference
    energy = None if reference is None else _known_sum(reference.detach(), weights)[0]
    parts = [] if energy is None else [energy.reshape(-1)]
    parts += [total.new_tensor([float(count)]) if isinstance(count, int) else count.reshape(1)]
    sums = torch.cat([*parts, total.new_ones(1)]).detach()
    sums = sums if sum_over_processes is None else sum_over_processes(sums)
    known_to_all, processes = sums[-2], sums[-1]
    share = known_to_all / processes
    mean = total / torch.where(share > 0, share, torch.ones_like(share))
    if energy is None:
        return mean, None
    if not float(known_to_all) > 0.0:
        return mean.sum(), None
    batch_mean = (sums[:-2] / known_to_all).reshape(mean.shape)
    return _scaled(term, mean, scales.update(term.key, batch_mean)), sums[:-2].sum()


def _reduced_by_shares(
    term: SobolevTerm, comparison: Comparison, scales: RunningScales,
    sum_over_processes: SumOverProcesses | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    # Weighted sums, and what divides them: over all processes, so that their mean is one's own.
    distance, reference = comparison.distance, comparison.reference
    known = distance.new_ones(distance.shape[:2])
    known = known if comparison.known is None else comparison.known.to(known.dtype)
    shares = comparison.shares or []
    blocks = 1 + max(share.block for share in shares)
    totals: list[Any] = [0.0] * blocks
    energies: list[Any] = [0.0] * (blocks if reference is not None else 0)
    counts: list[Any] = [0.0] * blocks
    for share in shares:  # of several calls
        own, block = known[:, share.rows], share.block
        counts[block] += (own * share.count).sum()
        totals[block] += _known_sum(distance[:, share.rows], own * share.factor)[0]
        if reference is not None:
            of_target = reference[:, share.rows].detach()
            energies[block] += _known_sum(of_target, own * share.factor)[0]
    sizes = torch.stack(counts)
    sums = torch.cat([sizes, *[e.reshape(-1) for e in energies], sizes.new_ones(1)]).detach()
    sums = sums if sum_over_processes is None else sum_over_processes(sums)
    of_all, processes = sums[: len(sizes)], sums[-1]
    divisors = of_all / processes
    divisors = torch.where(divisors > 0, divisors, torch.ones_like(divisors))
    means = [total / divisor for total, divisor in zip(totals, divisors, strict=True)]
    mean = torch.stack(means).sum(0)
    if reference is None:
        return mean, None
    if not float(of_all.sum()) > 0.0:
        return mean.sum(), None
    energy = sums[len(sizes) : -1].reshape(len(sizes), *mean.shape)
    each = of_all.clamp_min(torch.finfo(of_all.dtype).tiny).reshape(-1, *[1] * mean.ndim)
    return _scaled(term, mean, scales.update(term.key, (energy / each).sum(0))), energy.sum()


def _scaled(term: SobolevTerm, mean: Tensor, scale: Tensor) -> Tensor:
    return by_element(mean, scale) if term.normalize == "elements" else mean / scale


def _known_sum(numbers: Tensor, weights: Tensor | None) -> tuple[Tensor, "Tensor | int"]:
    if weights is None:
        return numbers.sum((0, 1)), numbers.shape[0] * numbers.shape[1]
    return torch.einsum("pb,pb...->...", weights, numbers), weights.sum()


def by_element(
    errors: Float[Tensor, " elements"], scales: Float[Tensor, " elements"]
) -> Float[Tensor, ""]:
    r"""Return :math:`\frac1D \sum_j e_j / \max(s_j, 10^{-4}\,\bar s)`.

    An element whose target is zero, or nearly so, is held to zero with at most 10,000 times the
    weight of an ordinary one: it neither vanishes from the term nor takes it over. The bound
    compares elements, so inputs should be in comparable units.
    """
    return (errors / torch.maximum(scales, 1e-4 * scales.mean())).mean()


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum the named terms with their weights, the last step of a loss."""
    return functools.reduce(torch.add, [weights[key] * term for key, term in terms.items()])


def join(parts: Sequence[Comparison]) -> Comparison:
    """Put what was compared at several calls together, row after row."""
    if len(parts) == 1:
        return parts[0]
    parts = _of_as_many_projections(parts)
    distance = torch.cat([part.distance for part in parts], dim=1)
    references = [part.reference for part in parts if part.reference is not None]
    known = None
    if any(part.known is not None for part in parts):
        whole = [part.distance.new_ones(part.distance.shape[:2]).bool() for part in parts]
        pairs = zip(parts, whole, strict=True)
        known = torch.cat([every if p.known is None else p.known for p, every in pairs], dim=1)
    skipped = [part.skipped for part in parts if part.skipped is not None]
    vanishes = [part.vanishes for part in parts if part.vanishes is not None]
    shares, start = [], 0
    for part in parts:  # of several calls
        for share in part.shares or []:
            rows = slice(start + share.rows.start, start + share.rows.stop)
            shares.append(replace(share, rows=rows))
        start += part.distance.shape[1]
    return Comparison(
        distance,
        torch.cat(references, dim=1) if references else None,
        known,
        torch.stack(vanishes).all() if vanishes else None,
        torch.stack(skipped).sum() if skipped else None,
        shares=shares or None,
    )


def _of_as_many_projections(parts: Sequence[Comparison]) -> Sequence[Comparison]:
    # All directions of a large graph are more than those of a small one: fill up with unknown.
    counts = [len(part.distance) for part in parts]
    if len(set(counts)) < 2:
        return parts
    found = []
    for part, count in zip(parts, counts, strict=True):
        rows, missing = part.distance.shape[1], max(counts) - count
        each = part.distance.new_full((rows,), 1.0 / max(count, 1))
        known = part.distance.new_ones((count, rows)).bool() if part.known is None else part.known
        fill = functools.partial(_filled_up, missing=missing)
        reference = None if part.reference is None else fill(part.reference)
        shares = part.shares or [Share(slice(0, rows), each, each)]
        found.append(replace(
            part, distance=fill(part.distance), reference=reference, known=fill(known),
            shares=shares,
        ))  # fmt: skip
    return found


def _filled_up(rows: Tensor, missing: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
