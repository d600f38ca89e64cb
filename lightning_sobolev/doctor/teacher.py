r"""Is it worth matching this teacher's derivatives at stored states, or asking it for values?

A derivative at a state tells a student what the teacher does beside it. How far "beside" reaches is
measured here, with the teacher and some states alone, before any training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev._types import Teacher
from lightning_sobolev.doctor.gradients import Gradient, gradient_of
from lightning_sobolev.doctor.moves import (
    Explained,
    NothingToExplain,
    OutputMap,
    answering,
    check_points,
    explained,
)
from lightning_sobolev.points import Recombine, Shift

ENOUGH = 0.3
"""Score of a derivative at recombined states from which on stored ones are enough."""
_NOISES = (0.01, 0.03, 0.1)
_NEXT, _SHIFT, _TENTH = "the next state", "shifted by one place", "a tenth of the way to another"
_SHORT = (_NEXT, _SHIFT, _TENTH)
_RECOMBINED = {"boxes of another state": "cutmix", "12 x 12 cells of another": "grid:12"}
_ELEMENTS = {"elements of another state": "elements"}
_ADVICE = {
    "stored": "derivatives at stored states",
    "queries": "ask it for values at recombined states (queries), with cheap derivatives there",
    "open": "open: try both on the validation split",
}


@dataclass(frozen=True, slots=True)
class Move:
    """A kind of move, and what the teacher's derivatives say of its change over it.

    Args:
        name: The move.
        found: Both scores; None where no state moved or no answer changed.
    """

    name: str
    found: Explained | None


@dataclass(frozen=True, slots=True)
class TeacherReport:
    """How linear a teacher is over moves between states, and what follows.

    Args:
        states: Number of states.
        moves: Kinds of moves.
        gradient: What the derivative is made of; None where it is zero at all states.
    """

    states: int
    moves: tuple[Move, ...]
    gradient: Gradient | None

    @property
    def recombined(self) -> float | None:
        """Mean first-order score over the kinds of recombined states; None where none changed."""
        kinds = {*_RECOMBINED, *_ELEMENTS}
        scores = [
            each.found.first_order for each in self.moves if each.name in kinds and each.found
        ]
        return sum(scores) / len(scores) if scores else None

    @property
    def short(self) -> float | None:
        """Score of both ends over the first short move that was measured; None without one."""
        found = [each.found for each in self.moves if each.name in _SHORT and each.found]
        return found[0].both_ends if found else None

    @property
    def advice(self) -> Literal["stored", "queries", "open"]:
        """What is worth trying first.

        ``"stored"``: derivatives at stored states, where one explains more than 0.3 of the change
        to recombined states. ``"queries"``: values at recombined states, where it explains less
        than none of that, and those at both ends some of a short move. ``"open"``: neither.
        """
        far, short = self.recombined, self.short
        if far is not None and far > ENOUGH:
            return "stored"
        if far is not None and short is not None and far < 0.0 < short:
            return "queries"
        return "open"

    @property
    def text(self) -> str:
        """The advice in one line."""
        scores = [("F at recombined states", self.recombined), ("T at a short move", self.short)]
        said = [f"{name} {score:.2f}" for name, score in scores if score is not None]
        return f"{_ADVICE[self.advice]} ({', '.join(said) or 'nothing changed'})"

    def numbers(self) -> Iterator[tuple[str, str, float | None]]:
        """List every number: where it was measured, its name, and itself."""
        for move in self.moves:
            for name in ("first_order", "both_ends", "error"):
                yield move.name, name, None if move.found is None else getattr(move.found, name)
        if self.gradient is None:
            return
        for stable in self.gradient.stability:
            yield stable.place, "gradient_nmse", stable.nmse
            yield stable.place, "gradient_cosine", stable.cosine
        for varying in self.gradient.varying:
            yield varying.place, "share_of_inputs", varying.inputs
            yield varying.place, "share_of_energy", varying.energy
        for place, share in self.gradient.bands:
            yield place, "share_of_energy", share


def teacher_report(
    teacher: Teacher | nn.Module,
    x: Float[Tensor, "batch *in"],
    *,
    on: OutputMap = "identity",
    next_x: Float[Tensor, "batch *in"] | None = None,
    seed: int = 0,
) -> TeacherReport:
    """Measure how linear a teacher is over moves between states.

    Moves are those to the next state, to states recombined from two of them
    (:class:`~lightning_sobolev.Recombine`), by one place along the axes of space or a tenth of the
    way to another state, and Gaussian noise. Vectors ``[batch, in]`` have the standard deviation of
    each input as unit; inputs with axes of space, ``[batch, channels, *space]``, that of all.

    The teacher is left as it was, and no global random number is drawn.

    Cost: for 128 states of 4 x 84 x 84 and a network of three convolutions about ten seconds of one
    core, two thirds of them for the derivatives with noise.

    Args:
        teacher: Answers at any points; a module is taken as a frozen network in eval mode.
        x: The states, at least two, as they are met: all in one game would be one state.
        on: Output map or its name, as ``SobolevSpec`` takes it; what is measured is
            ``on(teacher)``.
        next_x: The state that follows each of them in time.
        seed: Of all draws.

    Returns:
        All numbers and an advice.

    Raises:
        ValueError: If shapes or types do not fit, the teacher answers at stored points alone, or a
            number is not finite.
        NothingToExplain: If the teacher answers the same everywhere.

    Example:
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> report = teacher_report(torch.nn.Linear(4, 2), x)
        >>> report.text
        'derivatives at stored states (F at recombined states 1.00, T at a short move 1.00)'
    """
    check_points("x", x)
    require(len(x) >= 2, "x", "two states at least", list(x.shape))
    if next_x is not None:
        check_points("next_x", next_x, x)
    generator = Generator().manual_seed(seed)
    unit = _unit(x)
    noise = {level: x + level * unit * _normal(x, generator) for level in _NOISES}
    kinds = {} if next_x is None else {_NEXT: next_x}
    kinds |= _made(x, generator) | {f"noise of {level:g} std": at for level, at in noise.items()}
    moves = tuple(Move(name, _found(teacher, x, moved, on)) for name, moved in kinds.items())
    if all(move.found is None for move in moves):
        raise NothingToExplain(
            f"teacher must answer differently somewhere, got the same at {len(x)} states and "
            "wherever they move"
        )
    spread = x.std(0) / torch.where(unit > 0, unit, torch.ones_like(unit))
    thresholds = (0.1, 0.3) if x.ndim > 2 else (0.0,)  # an input of a vector varies or does not
    with answering(teacher, x.device) as asked:
        gradient = gradient_of(asked, x, noise, on, spread, thresholds)
    return TeacherReport(len(x), moves, gradient)


def _unit(x: Tensor) -> Tensor:
    # Elements of a picture are alike; those of a vector have units of their own.
    return x.std() if x.ndim > 2 else x.std(0)


def _normal(x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _made(x: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Return the states that are made of the given ones."""
    kinds = _RECOMBINED if x.ndim > 2 else _ELEMENTS
    made = {name: Recombine(1.0, kind).at(x, generator, 0) for name, kind in kinds.items()}
    if x.ndim > 2:
        return made | {_SHIFT: Shift(1.0, most=1).at(x, generator, 0)}
    others = x[torch.randperm(len(x), generator=generator).to(x.device)]
    return made | {_TENTH: torch.lerp(x, others, 0.1)}


def _found(
    teacher: Teacher | nn.Module, x: Tensor, moved: Tensor, on: OutputMap
) -> Explained | None:
    try:
        return explained(teacher, x, moved, on)
    except NothingToExplain:
        return None
