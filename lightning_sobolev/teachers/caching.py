"""Ask a teacher about every sample of a data set once, and store the answers."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_sobolev._types import Points, Query, Teacher
from lightning_sobolev.functional.projections import counter_draw
from lightning_sobolev.spec import OUTPUT_MAPS
from lightning_sobolev.teachers.network import NetworkTeacher
from lightning_sobolev.teachers.stored import CacheSettings, claim, is_written, write_shard

Inputs = Callable[[Int[Tensor, " batch"]], Points]
"""From numbers of samples to the inputs that the student's observed module gets for them."""


def cache_answers(
    teacher: Teacher, inputs: Inputs, num_samples: int, folder: str | Path,
    settings: CacheSettings | None = None, *,
    label: str | None = None, batch_size: int = 256, rank: int = 0, world_size: int = 1,
) -> Path:  # fmt: skip
    r"""Store a teacher's values and projected derivatives over a data set.

    The direction of sample n in draw k is a pure function of (seed, n, k), so it is not stored.
    Shards that are there already are left alone: an interrupted call is simply made again. Several
    processes (or machines that share the folder) take every ``world_size``-th shard each.

    Cost: one forward pass a sample, and for each draw one backward pass (for tangents, one more
    once). Takes :math:`4C + 8 + \text{draws}\,(4 + b N)` bytes a sample for C outputs and N = C
    (tangents) or N = inputs (cotangents) numbers of b = 2 or 4 bytes.

    Args:
        teacher: Who is asked.
        inputs: Returns the inputs of given samples, exactly as training will show them.
        num_samples: Samples are numbered from 0.
        folder: Where the cache goes; empty, missing, or the same cache unfinished.
        settings: What is stored.
        label: What identifies the teacher; the hash of its weights for a network.
        batch_size: Samples at a time.
        rank: Of this process.
        world_size: Number of processes.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds another cache, the teacher cannot be told apart from others,
            or an answer is not finite.
    """
    settings, folder = settings or CacheSettings(), Path(folder)
    x = inputs(torch.arange(min(2, num_samples)))
    out_shape = tuple(teacher.at(Query(x, OUTPUT_MAPS[settings.on])).value.shape[1:])
    content = {"teacher": label or _identity(teacher), "num_samples": num_samples}
    shapes = {"in_shape": list(x.shape[1:]), "out_shape": list(out_shape)}
    claim(folder, content | shapes | asdict(settings))  # all that decides a byte
    record = settings.record(tuple(x.shape[1:]), out_shape)
    shards = range(-(-num_samples // settings.shard_size))
    for number in shards[rank::world_size]:
        if is_written(folder, number):
            continue
        start = number * settings.shard_size
        records = np.empty(min(settings.shard_size, num_samples - start), record)
        for part in torch.split(torch.arange(start, start + len(records)), batch_size):
            rows = records[int(part[0]) - start :][: len(part)]
            # Columns are a second derivative of what is recorded: fused attention has none.
            with sdpa_kernel(SDPBackend.MATH):
                _fill(rows, teacher, inputs(part), part, settings)
        write_shard(folder, number, records)
    return folder


def marks(x: Points, seed: int) -> Float[Tensor, " batch"]:
    """Return the rows' scalar product with fixed signs: it tells inputs apart on any device."""
    index, shape = torch.tensor([x[0].numel()]), (x[0].numel(),)
    signs = counter_draw("rademacher", index, shape, seed=seed, draw=-1, dtype=torch.float32)
    return (x.detach().flatten(1).float() @ signs[0].to(x.device)).double()


def _fill(
    records: np.ndarray, teacher: Teacher, x: Tensor, index: Tensor, settings: CacheSettings
) -> None:
    jet = teacher.at(Query(x, OUTPUT_MAPS[settings.on]))
    records["value"] = jet.value.detach().float().cpu().numpy()
    records["mark"] = marks(x, settings.seed).cpu().numpy()
    like = jet.value if settings.side == "cotangent" else x
    for draw in range(settings.num_draws):
        direction = stored_direction(settings, index, tuple(like.shape[1:]), draw).to(like)[None]
        found = jet.vjp(direction) if settings.side == "cotangent" else jet.jvp(direction)
        row = found[0].detach().float().cpu().numpy()
        if not np.isfinite(row).all():
            raise ValueError(f"the teacher's answer must be finite, got NaN or Inf in {index}")
        scale = np.ones(len(row), np.float32)
        if settings.dtype == "float16":
            scale = np.abs(row).reshape(len(row), -1).max(1)
            scale[scale == 0.0] = 1.0
        records["scale"][:, draw] = scale
        records["derivative"][:, draw] = row / scale.reshape(-1, *[1] * (row.ndim - 1))


def stored_direction(
    settings: CacheSettings, index: Int[Tensor, " batch"], shape: tuple[int, ...], draw: int
) -> Float[Tensor, "batch *rest"]:
    """Return the directions of one draw."""
    return counter_draw(
        settings.projection, index, shape, seed=settings.seed, draw=draw, dtype=torch.float32
    )


def _identity(teacher: Teacher) -> str:
    if not isinstance(teacher, NetworkTeacher):
        kind = type(teacher).__name__
        raise ValueError(f"label must identify a teacher that is no network, got None for {kind}")
    if teacher.convert is not None or teacher.answer is not None:
        raise ValueError(
            "label must identify a teacher with convert= or answer=, whose weights are not all of "
            "it, got None"
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # as bytes, since numpy knows no bfloat16
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
