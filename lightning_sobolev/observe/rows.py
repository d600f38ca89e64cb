"""Which arguments of a call have rows: by declaration, or by the call's own evidence.

Note [evidence]
    That a length agrees with the number of rows proves nothing: a memory bank, a table or a mask
    may have it by chance. The call is replayed in eval mode on all rows and on some; only if the
    arguments were cut rightly, and no row depends on another, the second gives rows of the first.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_sobolev import _paths
from lightning_sobolev.observe.call import Cut, RowCut
from lightning_sobolev.observe.graphs import cut_to_groups, index_of, outputs_of, tables_of
from lightning_sobolev.observe.places import Forward, Inputs, resolve, select_output
from lightning_sobolev.observe.tables import Kinds, Layout, Tables

if TYPE_CHECKING:
    from lightning_sobolev.observe.recorder import Observed

_GROUPS = (
    "rows must be 1.0 for this student, got a term on a part of the graphs: evaluated on some "
    "graphs alone, its output is not that of the same graphs among all; graphs depend on one "
    "another, or an argument cannot be cut (known are node, graph and edge tables, edge_index "
    "[2, edges], and batches of torch-geometric)"
)
_MOST = 6
"""Ambiguous arguments of which all subsets are tried."""


class NotIndependentError(ValueError):
    """Some rows alone do not give what they give among all."""


class NotDeterministicError(ValueError):
    """All rows do not give twice the same."""


class RowAxes:
    """The axis of the rows in every argument of a module that has them; learned once."""

    def __init__(self, declared: Mapping[str | int, int | None] | None) -> None:
        self._declared = declared
        self._known: dict[frozenset[_paths.Path], dict[_paths.Path, int]] = {}
        self._whole: set[_paths.Path] = set()
        self._tables = Tables()

    def cut(self, seen: "Observed", rows: Tensor) -> Cut:
        """Return the cut of a call's arguments to some rows, or groups of them.

        Raises:
            ValueError: If rows depend on one another, or nothing tells what has rows.
        """
        if seen.call.groups is not None:
            return self._cut_to_groups(seen, rows)
        candidates = self._candidates(seen)
        key = frozenset(candidates)
        if key not in self._known:
            self._known[key] = self._learned(seen, rows, candidates)
        return RowCut(rows, self._known[key])

    def _cut_to_groups(self, seen: "Observed", chosen: Tensor) -> Cut:
        tables = tables_of(seen)
        layout = self._tables.layout(tables, index_of(seen), seen.size)
        kinds = self._tables.kinds(tables, layout, partial(_first_right, seen, layout))
        return cut_to_groups(seen, chosen, layout, kinds)

    def _candidates(self, seen: "Observed") -> dict[_paths.Path, int]:
        call = seen.call
        inputs = call.inputs if call.outer is None else call.outer
        if self._declared is not None:
            named = {_resolved(name, call.forward, inputs): a for name, a in self._declared.items()}
            axes = {path: axis for path, axis in named.items() if axis is not None}
            for path, axis in axes.items():
                name = next(n for n in self._declared if _resolved(n, call.forward, inputs) == path)
                _check_axis(name, axis, _paths.get(inputs, path, "row_axes"), seen.size)
            return axes
        found = {}
        for path, tensor in _paths.tensors(inputs):
            is_x = call.outer is None and path in call.place.paths
            has_length = tensor.ndim > 0 and tensor.shape[0] == seen.size
            if not is_x and not has_length:
                self._whole.add(path)  # no row for each row: whole also where a length agrees later
            elif not is_x and path not in self._whole:
                found[path] = 0
        return found

    def _learned(
        self, seen: "Observed", rows: Tensor, candidates: dict[_paths.Path, int]
    ) -> dict[_paths.Path, int]:
        parts = _parts(seen.size, rows.device)
        with _trial(seen):
            whole = _replayed(seen, seen.x.detach(), None)
            for axes in _subsets(candidates, exact=self._declared is not None):
                if all(_gives_rows(seen, RowCut(p, axes), whole[p]) for p in parts):
                    return axes
            everything = torch.arange(seen.size, device=rows.device)
            is_fixed = _gives_rows(seen, RowCut(everything, {}), whole)
        if not is_fixed:
            raise NotDeterministicError(
                "rows must be 1.0 for a student that is not deterministic, got a term on a part of "
                "the rows: in eval mode, too, its output differs from call to call"
            )
        raise NotIndependentError(
            "rows must be 1.0 for this student, got a term on a part of the rows: evaluated on "
            "some rows alone, its output is not that of the same rows among all, however the other "
            "arguments are cut; rows depend on one another (a causal or sequence-first model, a "
            "graph), or row_axes= must say which arguments have rows"
        )


def _first_right(seen: "Observed", layout: Layout, trials: Iterable[Kinds]) -> Kinds:
    # The first that gives, for some graphs alone, the output of the same graphs among all.
    with _trial(seen):
        whole = _replayed(seen, seen.x.detach(), None)
        parts = _parts(seen.size, seen.x.device)
        for kinds in trials:
            if all(
                _gives_rows(
                    seen, cut_to_groups(seen, part, layout, kinds), whole[outputs_of(seen, part)]
                )
                for part in parts
            ):
                return kinds
    raise NotIndependentError(_GROUPS)


def are_coupled(seen: "Observed") -> bool:
    """Whether an output row changes with the input of another row or group."""
    groups, x = seen.call.groups, seen.x.detach()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    with _trial(seen):
        whole = _replayed(seen, x, None)
        for part in _parts(seen.size, x.device):
            moved = part if groups is None else torch.isin(groups.index, part).nonzero()[:, 0]
            outputs = part if groups is None else outputs_of(seen, part)
            kept = torch.ones(len(whole), dtype=torch.bool, device=x.device)
            kept[outputs] = False
            other = x.clone()
            other[moved] += noise[moved]
            if not _agree(_replayed(seen, other, None)[kept], whole[kept]):
                return True
    return False


def _parts(size: int, device: torch.device) -> list[Tensor]:
    # By the binary digits of their numbers: any two rows are parted by one of them.
    rows = torch.arange(size, device=device)
    digits = [(rows >> place) & 1 == 1 for place in range(max(size - 1, 1).bit_length())]
    return [rows[chosen] for digit in digits for chosen in (digit, ~digit) if bool(chosen.any())]


def _gives_rows(seen: "Observed", cut: Cut, expected: Tensor) -> bool:
    try:
        part = _replayed(seen, seen.x.detach()[cut.rows], cut)
    except Exception:
        return False
    return part.shape == expected.shape and _agree(part, expected)


def _resolved(name: str | int, forward: Forward, inputs: Inputs) -> _paths.Path:
    try:
        return resolve(name, forward, inputs)
    except ValueError as error:
        raise ValueError(
            f"row_axes: {name!r} must be an argument of the call, got {error}"
        ) from error


def _check_axis(name: str | int, axis: int, tensor: Tensor, size: int) -> None:
    if not isinstance(tensor, Tensor) or not axis < tensor.ndim or tensor.shape[axis] != size:
        raise ValueError(
            f"row_axes: {name!r} must have {size} rows along axis {axis}, "
            f"got {_paths.describe(tensor)}"
        )


def _subsets(
    candidates: dict[_paths.Path, int], *, exact: bool
) -> Iterator[dict[_paths.Path, int]]:
    sizes = range(len(candidates), -1, -1)
    if exact or len(candidates) > _MOST:
        sizes = [len(candidates)] if exact else [len(candidates), 0]  # type: ignore[assignment]
    for size in sizes:
        for chosen in combinations(candidates.items(), size):
            yield dict(chosen)


@contextmanager
def _trial(seen: "Observed") -> Iterator[None]:
    # In eval mode dropout draws nothing and batch norms keep rows apart. The weights are shaken: a
    # last layer of zeros would make every cut agree.
    snapshot = seen.call.snapshot
    assert snapshot is not None
    modes, weights, copies = list(snapshot.modes), dict(snapshot.weights), seen.call.copies
    snapshot.modes[:] = [(module, False) for module, _ in modes]
    if not seen.recorder.is_sharded:
        generator = torch.Generator().manual_seed(0)
        shaken = {id(tensor): _shaken(tensor, generator) for tensor, _ in weights.values()}
        for name, (tensor, _) in weights.items():
            snapshot.weights[name] = (shaken[id(tensor)], shaken[id(tensor)]._version)
    seen.call.copies = None
    try:
        # Not without gradients: a student may differentiate inside (forces). Its weights need none.
        with torch.enable_grad(), seen.recorder.paused():
            yield
    finally:
        snapshot.modes[:] = modes
        snapshot.weights.update(weights)
        seen.call.copies = copies


def _shaken(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach()
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
    return tensor.detach() + 0.1 * noise


def _replayed(seen: "Observed", x: Tensor, cut: Cut | None) -> Tensor:
    x = x.float() if x.dtype.itemsize < 4 else x
    result = seen.call.replay(x.clone(), seen.recorder.replay_options, cut)
    return select_output(result, seen.call.output, None).detach()


def _agree(part: Tensor, whole: Tensor) -> bool:
    # Products are summed in another order for another number of rows.
    tolerance = torch.finfo(part.dtype).eps ** 0.5
    part, whole = part.double().nan_to_num(), whole.double().nan_to_num()
    if not part.numel():
        return True
    return bool((part - whole).abs().max() <= tolerance * whole.abs().max().clamp_min(1e-30))


def trained_batch_norms(module: nn.Module) -> bool:
    """Whether some batch norm is in train mode, which couples rows; that is known and said."""
    return any(isinstance(part, _BatchNorm) and part.training for part in module.modules())
