r"""Random and basis directions: which part of a Jacobian is compared.

Every kind has the same scale: over the draw, the mean over projections of
:math:`|u_p^\top J|^2` has expectation :math:`|J|_F^2`, because :math:`E[u u^\top] = I`. A weight
therefore means the same for each kind, number of projections and batch size. A unit vector on the
sphere in C dimensions alone would give :math:`|J|_F^2 / C`.

Note [hashing]
    What is random is a pure function of integers, hashed by the mixing function of splitmix64
    (Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators), on tensors and on
    integers. int64 arithmetic wraps around as unsigned arithmetic does; only the shifts need a
    mask.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_sobolev._checks import require

PROJECTIONS = ("sphere", "gaussian", "rademacher", "basis")

GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


def draw(
    kind: str, shape: Sequence[int], *, num_projections: int | None, generator: torch.Generator,
    dtype: torch.dtype | None = None, device: torch.device | str | None = None,
) -> Float[Tensor, "proj batch *rest"]:  # fmt: skip
    r"""Return directions for every row of a batch.

    With C the number of elements of a row:

    - ``"sphere"``: uniform on the sphere of radius :math:`\sqrt C`;
    - ``"gaussian"``: independent standard normals;
    - ``"rademacher"``: independent signs;
    - ``"basis"``: distinct basis directions times :math:`\sqrt C`, drawn for each row without
      replacement; ``num_projections=None`` gives all of them, in order: then nothing is random and
      the mean over projections is :math:`|J|_F^2` exactly.

    Numbers are drawn on the generator's device in float32, or float64 where that is asked for, and
    then moved: a draw does not depend on where the model is. ``shape`` is ``[batch, *rest]``, that
    of what the directions are paired with; ``num_projections`` is the number for each row.

    Raises:
        ValueError: If ``kind`` is unknown, ``shape`` has no batch axis, or ``num_projections`` is
            below 1, above C for ``"basis"``, or ``None`` for another kind.

    Source:
        Czarnecki et al. 2017, Sobolev Training for Neural Networks (arXiv:1706.04859), projects on
        unit vectors; the factor :math:`\sqrt C` follows Hoffman, Roberts and Yaida 2019, Robust
        Learning with Jacobian Regularization (arXiv:1908.02729).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draw("sphere", (3, 4), num_projections=2, generator=generator).square().sum(-1)
        tensor([[4.0000, 4.0000, 4.0000],
                [4.0000, 4.0000, 4.0000]])
    """
    if kind not in PROJECTIONS:
        require(False, "projection", f"one of {PROJECTIONS}", kind)
    if not shape:
        raise ValueError("shape must be [batch, *rest], got an empty one")
    batch, rest = shape[0], tuple(shape[1:])
    size = torch.Size(rest).numel()
    count = num_projections
    if count is None or count < 1 or kind == "basis":
        count = _count(kind, num_projections, size)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    if kind == "basis":
        flat = _draw_basis(count if num_projections else None, batch, size, generator).to(drawn)
    elif kind == "rademacher" or (kind == "sphere" and size == 1):
        place: Any = {"generator": generator, "device": generator.device, "dtype": drawn}
        flat = torch.randint(0, 2, (count, batch, size), **place).mul_(2.0).sub_(1.0)
    else:
        shape, device_of = (count, batch, size), generator.device
        flat = torch.randn(shape, generator=generator, device=device_of, dtype=drawn)
        flat = _on_sphere(flat) if kind == "sphere" else flat
    return flat.reshape(count, batch, *rest).to(device=device or generator.device, dtype=dtype)


def counter_draw(
    kind: str, sample_index: Int[Tensor, " batch"], rest_shape: Sequence[int], *,
    seed: int, draw: int, dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch *rest"]:  # fmt: skip
    """Return a direction for each sample, a pure function of (seed, sample index, draw).

    The row of a sample is the same whatever batch it is in, whatever came before and whichever
    process asks, so that a stored projection of a teacher's derivative can be matched later. Kinds
    and scale are those of :func:`draw`; ``"basis"`` picks one direction, uniformly. Bits come from
    a counter-based hash (exact on every device), normals from them by Box and Muller in float64 on
    the device of ``sample_index``, which holds integers of the data set.

    Raises:
        ValueError: If ``kind`` is unknown or ``sample_index`` is not a vector of integers.

    Source:
        Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators (the mixing
        function); Box and Muller 1958, A Note on the Generation of Random Normal Deviates.

    Example:
        >>> counter_draw("rademacher", torch.tensor([7, 3]), (3,), seed=0, draw=0).shape
        torch.Size([2, 3])
    """
    require(kind in PROJECTIONS, "projection", f"one of {PROJECTIONS}", kind)
    if sample_index.dim() != 1 or sample_index.is_floating_point():
        raise ValueError(
            "sample_index must be a vector of integers, "
            f"got {sample_index.dtype} of shape {list(sample_index.shape)}"
        )
    rest = torch.Size(rest_shape)
    size = rest.numel()
    index = sample_index.long()
    keys = mix(mix(index + signed(hash_words(seed, draw)))[:, None] + 1)
    if kind == "basis":
        choice = _bits(keys, torch.zeros_like(index[:1])) % size
        flat = torch.zeros(len(index), size, dtype=torch.float64, device=index.device)
        flat.scatter_(1, choice, math.sqrt(size))
    elif kind == "rademacher" or (kind == "sphere" and size == 1):
        flat = _signs(keys, size)
    else:
        normals = _normals(_bits(keys, torch.arange(2 * size, device=index.device)))
        flat = _on_sphere(normals) if kind == "sphere" else normals
    return flat.reshape(len(index), *rest).to(torch.get_default_dtype() if dtype is None else dtype)


def generator_for(*words: int, generator: torch.Generator | None = None) -> torch.Generator:
    """Return a generator whose seed is a hash of ``words``, their order and their number.

    It is ``generator``, seeded anew, or a new one on the CPU.
    """
    seeded = torch.Generator() if generator is None else generator
    return seeded.manual_seed(hash_words(*words))


def hash_words(*words: int) -> int:
    """Hash integers, their order and their number to an unsigned word."""
    state = len(words)
    for given in words:  # at every draw: the mixing function twice, without a call
        word = given & _WORD
        for before in (0, state):
            word = ((before ^ word) + GOLDEN) & _WORD
            word = ((word ^ (word >> 30)) * _FIRST) & _WORD
            word = ((word ^ (word >> 27)) * _SECOND) & _WORD
            word ^= word >> 31
        state = word
    return state


def mix(words: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Hash every int64."""
    words = words + signed(GOLDEN)
    words = (words ^ shifted(words, 30)) * signed(_FIRST)
    words = (words ^ shifted(words, 27)) * signed(_SECOND)
    return words.bitwise_xor(shifted(words, 31))


def shifted(words: Int[Tensor, "*any"], by: int) -> Int[Tensor, "*any"]:
    """Shift right as unsigned words."""
    return (words >> by).bitwise_and((1 << (64 - by)) - 1)


def signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word."""
    return word - 2**64 if word >= 2**63 else word


def _count(kind: str, num_projections: int | None, size: int) -> int:
    # What remains for "basis", or is refused.
    if num_projections is None:
        if kind != "basis":
            raise ValueError(
                "num_projections=None (every direction) needs projection 'basis', "
                f"got projection {kind!r}"
            )
        return size
    require(num_projections >= 1, "num_projections", "at least 1", num_projections)
    expected = f"at most the {size} basis directions"
    require(
        kind != "basis" or num_projections <= size, "num_projections", expected, num_projections
    )
    return num_projections


def _draw_basis(count: int | None, batch: int, size: int, generator: torch.Generator) -> Tensor:
    if count is None:
        eye = torch.eye(size, device=generator.device)[:, None].expand(size, batch, size)
        return eye.double() * math.sqrt(size)
    scores = torch.rand(batch, size, generator=generator, device=generator.device)
    chosen = scores.topk(count, dim=1).indices.T  # [proj, batch]
    flat = torch.zeros(count, batch, size, dtype=torch.float64, device=generator.device)
    return flat.scatter_(2, chosen[..., None], math.sqrt(size))


def _on_sphere(normals: Tensor) -> Tensor:
    # In place and without a square of everything: pictures have tens of thousands of numbers.
    norms = torch.linalg.vector_norm(normals, dim=-1, keepdim=True)
    # a vector of zeros stays one instead of becoming NaN
    radius = math.sqrt(normals.shape[-1])
    return normals.mul_(radius / norms.clamp_min(torch.finfo(norms.dtype).tiny))


def _words(keys: Int[Tensor, "batch 1"], counters: Int[Tensor, " count"]) -> Tensor:
    return mix(keys + counters * signed(GOLDEN))


def _bits(keys: Int[Tensor, "batch 1"], counters: Int[Tensor, " count"]) -> Tensor:
    return shifted(_words(keys, counters), 11)  # 53 of them


def _signs(keys: Int[Tensor, "batch 1"], size: int) -> Float[Tensor, "batch size"]:
    # Every bit of a word is a sign, eight at a time from a table: a direction in the space of
    # pictures has tens of thousands of them.
    words = _words(keys, torch.arange(-(-size // 64), device=keys.device))
    octets = torch.arange(256, device=keys.device)
    table = ((octets[:, None] >> torch.arange(8, device=keys.device)) & 1) * 2.0 - 1.0
    return table[words.view(torch.uint8).int()].flatten(1)[:, :size]


def _normals(bits: Int[Tensor, "batch two_size"]) -> Tensor:
    radius = torch.sqrt(-2 * torch.log((bits[:, ::2] + 1).double() * 2.0**-53))
    return radius * torch.cos(bits[:, 1::2].double() * (2.0**-52 * torch.pi))
