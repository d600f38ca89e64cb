"""How many projections of a term one backward pass carries: as told, or measured once a fit.

Of more than eight projections the first evaluation takes all both ways on the network itself, one
after the other and sixteen at once, the gradient in its parameters included. Sixteen at once are
kept where they give the same numbers in clearly less time, summed over all processes.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._types import Directions, Jet
from lightning_sobolev.functional.derivatives import FuncJet, TapeJet
from lightning_sobolev.loss.compare import project, project_target
from lightning_sobolev.loss.reduce import SumOverProcesses
from lightning_sobolev.spec import SobolevTerm

MANY = 8
"""Of so many projections or fewer nothing is measured."""

AT_ONCE = 16
"""Little is gained beyond, and a convolution slows down, see docs/term-settings.md."""

_CLEARLY, _TURNS, _ENOUGH_SECONDS = 0.95, 3, 1.0
_SLOW_WORDS = "performance drop"
_SLOW = f".*{_SLOW_WORDS}.*"


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """What a term asks a jet for.

    Args:
        key: Under which a choice is kept.
        term: Who asks.
        jet: Who is asked.
        directions: What the jet is projected on.
        out_shape: Shape of the student's output, where the jet is a teacher's.
    """

    key: str
    term: SobolevTerm
    jet: Jet
    directions: Directions
    out_shape: Sequence[int] | None = None

    def take(self, at_once: int = 1) -> Tensor:
        """Take the projections, so many at once."""
        if self.out_shape is None:
            return project(self.term, self.jet, self.directions, at_once)
        return project_target(self.term, self.jet, self.directions, self.out_shape, at_once)

    @property
    def number(self) -> int:
        """How many there are."""
        sizes = [len(given) for given in self.directions[:2] if given is not None]
        is_all = self.term.order == 2 and self.term.num_projections is None
        return sizes[0] * sizes[1] if is_all else max(sizes, default=0)

    @property
    def has_choice(self) -> bool:
        """Whether several can be taken at once: not pairs on the tape, nor what was pushed."""
        is_pair = self.term.order == 2 and self.term.num_projections is not None
        if isinstance(self.jet, TapeJet):
            return not is_pair
        return isinstance(self.jet, FuncJet) and self.jet.pushed is None


@dataclass(slots=True)
class AtOnce:
    """Chooses how many projections are taken at once, and knows what was chosen.

    Args:
        wish: So many, always; None measures.
        chosen: What was measured to be faster, by key.
        news: What was chosen and why, until somebody has said it.

    Raises:
        ValueError: If ``wish`` is below 1.
    """

    wish: int | None = None
    chosen: dict[str, int] = field(default_factory=dict)
    news: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        is_number = isinstance(self.wish, int) and self.wish >= 1
        require(self.wish is None or is_number, "at_once", "at least 1 or None", self.wish)

    def take(
        self, asked: Projections, parameters: Sequence[Tensor] | None,
        sum_over_processes: SumOverProcesses | None = None,
    ) -> Tensor:  # fmt: skip
        """Return projections, measured before where ``parameters`` are given and it is due.

        Raises:
            ValueError: If they cannot be taken as ``wish`` says.
        """
        if not asked.has_choice or asked.number == 1 or self.wish == 1:
            return asked.take()
        if self.wish is not None:
            return _as_wished(asked, self.wish)
        if asked.number <= MANY:
            return asked.take()
        if asked.key not in self.chosen and parameters is not None:
            self._measure(asked, parameters, sum_over_processes)
        return asked.take(self.chosen.get(asked.key, 1))

    def _measure(
        self, asked: Projections, parameters: Sequence[Tensor],
        sum_over_processes: SumOverProcesses | None,
    ) -> None:  # fmt: skip
        device = asked.jet.value.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            alone, together, problem = _measured(asked, parameters)
        numbers = [alone, together, float(bool(problem))]
        sums = torch.tensor(numbers, device=device)
        sums = sums if sum_over_processes is None else sum_over_processes(sums)
        all_alone, all_together, problems = sums.tolist()
        size = min(AT_ONCE, asked.number)
        text = f"{asked.key} takes its {asked.number} projections"
        times = f"{1e3 * together:.3g} ms, one after the other {1e3 * alone:.3g}"
        if problems:
            self.chosen[asked.key] = 1
            why = problem or "so it is on another process"
            self.news.append(f"{text} one after the other; {size} at once failed: {why}")
        elif all_together < _CLEARLY * all_alone:
            self.chosen[asked.key] = AT_ONCE
            self.news.append(f"{text} {size} at once: {times}")
        else:
            self.chosen[asked.key] = 1
            self.news.append(f"{text} one after the other; {size} at once: {times}")


def _as_wished(asked: Projections, at_once: int) -> Tensor:
    try:
        return asked.take(at_once)
    except RuntimeError as error:
        asked.take()  # what fails one after the other, too, is an error of its own
        raise ValueError(
            f"at_once must be 1 or None where the projections of {asked.key} cannot be taken "
            f"together (no batching rule? too little memory?), got {at_once}: {_first_line(error)}"
        ) from error


def _measured(asked: Projections, parameters: Sequence[Tensor]) -> tuple[float, float, str]:
    # Seconds of both ways, and what is wrong with the second.
    expected = _evaluated(asked, 1, parameters)
    try:
        with warnings.catch_warnings():
            # torch would loop over an operation without a batching rule, and say so ever again
            warnings.filterwarnings("error", message=_SLOW)
            found = _evaluated(asked, AT_ONCE, parameters)
    except RuntimeError as error:  # vmap's own kind; too little memory is one, too
        return 0.0, 0.0, _first_line(error)
    except UserWarning as warning:
        if _SLOW_WORDS not in str(warning):
            raise
        return 0.0, 0.0, _first_line(warning)
    if not _is_close(found, expected):
        return 0.0, 0.0, "other numbers came of it"
    del found, expected
    turns: list[tuple[float, float]] = []
    while len(turns) < _TURNS and sum(map(sum, turns)) < _ENOUGH_SECONDS:
        turns.append((_seconds(asked, 1, parameters), _seconds(asked, AT_ONCE, parameters)))
    alone, together = zip(*turns, strict=True)
    return min(alone), min(together), ""


def _evaluated(asked: Projections, at_once: int, parameters: Sequence[Tensor]) -> list[Tensor]:
    rows = asked.take(at_once)
    if not (parameters and rows.requires_grad):
        return [rows.detach()]
    wide = rows.float() if rows.dtype.itemsize < 4 else rows
    gradient = torch.autograd.grad(
        wide.square().sum(), parameters, retain_graph=True, allow_unused=True
    )
    return [rows.detach(), *(part for part in gradient if part is not None)]


def _is_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    # The rows, then the gradient as a whole: a part of it may be nothing but rounding.
    for one, other in ((found[:1], expected[:1]), (found[1:], expected[1:])):
        if len(one) != len(other):
            return False
        apart = [float((a - b).norm()) for a, b in zip(one, other, strict=True)]
        size = [float(b.norm()) for b in other]
        tolerance = max((torch.finfo(b.dtype).eps ** 0.5 for b in other), default=0.0)
        if not sum(apart) <= tolerance * sum(size):
            return False
    return True


def _seconds(asked: Projections, at_once: int, parameters: Sequence[Tensor]) -> float:
    device = asked.jet.value.device
    _wait_for(device)
    started = time.perf_counter()
    _evaluated(asked, at_once, parameters)
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
