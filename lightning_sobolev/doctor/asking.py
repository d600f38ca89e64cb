"""A live teacher that is asked once more, at a few points, without a trace."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._types import Query, Teacher
from lightning_sobolev.doctor.pairs import near_pairs
from lightning_sobolev.doctor.rehearsal import own_random_numbers

_ASKED_PAIRS, _MOST_OUTPUTS, _PROJECTIONS = 32, 16, 4


def asked(
    teacher: Teacher, query: Query, gathered: Float[Tensor, "points in"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ask the teacher at both ends of some near pairs: points, values, Jacobians."""
    pairs = near_pairs(gathered, gathered[:, :0], neighbors=1, most=_ASKED_PAIRS)
    x = gathered[torch.unique(torch.cat([pairs.first, pairs.second]))].to(query.x)
    x = x.reshape(len(x), *query.x.shape[1:])
    ours, cast = leaving_as_it_was(teacher), torch.autocast(x.device.type, enabled=False)
    with ours, torch.enable_grad(), cast:
        jet = teacher.at(Query(x, query.on, call=query.call, step=query.step, alone=True))
        value = jet.value.detach().reshape(len(x), -1)
        onto = projections(value)
        cotangents = onto[:, None].expand(-1, len(x), -1).reshape(-1, *jet.value.shape)
        rows = jet.vjp(cotangents).detach()
    return x, value @ onto.T, rows.transpose(0, 1)


@contextmanager
def leaving_as_it_was(teacher: Teacher) -> Iterator[None]:
    """Put the buffers of a teacher's networks and all generators back, whatever happens."""
    buffers = [buffer for network in teacher.networks for buffer in network.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    with own_random_numbers():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in zip(buffers, kept, strict=True):
                    buffer.copy_(before)


def projections(value: Float[Tensor, "points out"]) -> Float[Tensor, "proj out"]:
    """Return every output as a direction, or of more than 16 four fixed random combinations."""
    outputs = value.shape[1]
    if outputs <= _MOST_OUTPUTS:
        return torch.eye(outputs).to(value)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(_PROJECTIONS, outputs, generator=generator) / math.sqrt(outputs)
    return drawn.to(value)
