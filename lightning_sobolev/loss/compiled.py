"""The student's call, its derivatives and its terms as one compiled function.

A compiled network cannot be differentiated twice from outside. What is compiled is therefore the
whole of it: the student's forward, its projected derivatives through ``torch.func``, the frozen
teacher's, and the distances of every term; one ordinary backward pass remains outside. The step
stays as its user wrote it: all that the derivatives need (directions, the answer of a teacher that
is not a network) is there before the call.

Note [forward mode by transposition]
    Columns J v are taken as the transpose of the pullback, :class:`FuncJet` without ``tangents``.
    The compiler drops the row that is pulled back on the way. ``torch.func.jvp`` itself is refused
    by inductor for parameters without tangents, and by fake tensors for norms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn, Directions, Query
from lightning_sobolev.functional.derivatives import FuncJet
from lightning_sobolev.functional.fisher import FISHER
from lightning_sobolev.loss.compare import Comparison, Gaps, compare, project, project_target
from lightning_sobolev.loss.compiling import (
    CompiledFunction,
    CompileSettings,
    GivenUp,
    Joint,
    same_random_numbers,
)
from lightning_sobolev.loss.draws import Draws
from lightning_sobolev.loss.loss import Occasion, Point, SobolevLoss
from lightning_sobolev.observe.call import Call, Cut
from lightning_sobolev.observe.places import Inputs, Place, locate_output, select_output
from lightning_sobolev.observe.recorder import Observed, Recorder, mapped
from lightning_sobolev.observe.shadow import bare
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers import NetworkTeacher

Targets = Mapping[int, Tensor] | None
"""What the teacher answered for each term; None for one that is evaluated inside the function."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    # What one call of the student is asked for; ``again`` if it is a replay.
    indices: tuple[int, ...]
    again: bool
    rows: Tensor | None = None


class Compiler:
    """Compiles the observed call of one module, once for each shape of its inputs."""

    def __init__(
        self, loss: SobolevLoss, recorder: Recorder, settings: CompileSettings, *, nested: bool
    ) -> None:
        expected = "None or 1 where the student's call is compiled, which takes one after the other"
        require(loss.at_once.wish in (None, 1), "at_once", expected, loss.at_once.wish)
        self.given_up = False
        self._loss, self._recorder, self._settings = loss, recorder, settings
        self._nested, self._watched = nested, recorder.watched
        self._functions: dict[Any, CompiledFunction] = {}
        self._likes: dict[Any, tuple[torch.Size, torch.dtype, _paths.Path]] = {}
        self._occasion: Occasion | None = None

    @property
    def graphs(self) -> int:
        """How many graphs were compiled, those of backward passes not counted."""
        return sum(function.graphs for function in self._functions.values())

    def begin(self, occasion: Occasion) -> None:
        """Say on which occasion the next calls are made."""
        self._occasion = occasion

    def observe(self, seen: Observed) -> tuple[Any] | None:
        """Make the step's own call; None where it does not compile and the tape may."""
        device = seen.x.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # The gradient in a leaf would be computed for nobody.
        point = seen.x if seen.x.grad_fn is not None else seen.x.detach()
        evaluate = partial(self._evaluated, seen, point, _Asked(self._indices(1.0), False), low)
        joint = evaluate(seen.call.inputs)
        if joint is None:
            return None
        result, y = joint.aux
        seen.y, seen.node, seen.comparisons = y.clone(), y.grad_fn, joint.comparisons
        return (result,)

    def replay(
        self, seen: Observed, rows: Tensor | None, fraction: float, cut: Cut | None
    ) -> Observed | None:
        """Make a call once more, on some of its rows or on all."""
        options = self._recorder.replay_options
        low = torch.bfloat16 if options.inner_precision == "bf16-mixed" else None
        point = seen.x if seen.x.grad_fn is not None else seen.x.detach()
        asked = _Asked(self._indices(fraction), True, rows)
        evaluate = partial(self._evaluated, seen, point, asked, low)
        joint = seen.call.replay(point, options, cut, evaluate)
        if joint is None:
            return None
        seen.y, seen.comparisons = joint.aux[1], joint.comparisons
        return seen

    def _indices(self, fraction: float) -> tuple[int, ...]:
        assert self._occasion is not None
        step, terms = self._occasion.step, enumerate(self._loss.spec.terms)
        return tuple(i for i, t in terms if t.rows == fraction and t.weight_at(step) != 0.0)

    def _evaluated(
        self, seen: Observed, point: Tensor, asked: _Asked, low: torch.dtype | None, inputs: Inputs
    ) -> Joint | None:
        if self.given_up:
            return None
        device = point.device.type
        with bare(self._watched), torch.autocast(device, enabled=False):
            function = self._function(seen.call.module, asked, low)
            shape = _shapes(inputs, point)
            like, seen.call.output = self._like(function, shape, (point, inputs, seen.call.place))
            directions, targets = self._prepared(seen, point, like, asked)
            try:
                return function(shape, point, inputs, seen.call.place, directions, targets)
            except GivenUp:
                self.given_up = True
                return None

    def _function(
        self, module: nn.Module, asked: _Asked, low: torch.dtype | None
    ) -> CompiledFunction:
        key = asked.indices, asked.again, low
        if key not in self._functions:
            original: nn.Module = getattr(module, "_orig_mod", module)
            terms = {index: self._loss.spec.terms[index] for index in asked.indices}
            evaluate = _evaluation(original.forward, self._loss, self._recorder, terms, low)
            names = {index: term.key for index, term in terms.items()}
            self._functions[key] = CompiledFunction(
                evaluate, self._settings, original, names, nested=self._nested
            )
        return self._functions[key]

    def _like(
        self, function: CompiledFunction, shape: Any, call: tuple[Tensor, Inputs, Place]
    ) -> tuple[Tensor, _paths.Path]:
        # A tensor like the value, of which directions are drawn, without numbers; and its place.
        if shape not in self._likes:
            with torch.no_grad(), same_random_numbers(call[0].device):
                joint = function.eager(*call, {}, {})
            output = locate_output(joint.aux[0], self._recorder.options.output, len(call[0]))
            self._likes[shape] = joint.value.shape, joint.value.dtype, output
        size, dtype, output = self._likes[shape]
        return call[0].new_empty((), dtype=dtype).expand(size), output

    def _prepared(
        self, seen: Observed, point: Tensor, like: Tensor, asked: _Asked
    ) -> tuple[dict[int, Directions], Targets]:
        loss, occasion = self._loss, self._occasion
        assert occasion is not None
        on, x = loss.spec.output_map, point.detach()
        call, seed = seen.call, (loss.seed, loss.rank, occasion.number, 0)
        query = Query(
            x, on, occasion.batch, asked.rows, call, occasion.number, call.alone, seed=seed
        )
        outside = bool(asked.indices) and not _is_inside(loss, call)
        target = loss.teacher.at(query) if outside else None
        where = Point(seen, Draws(loss.seed, loss.rank, occasion.number), query, None, target)
        directions = {index: loss.directions(index, where, like) for index in asked.indices}
        is_whole = all(own.read is None for own in directions.values())
        require(is_whole, "compile", "False with a teacher that knows a part of rows", True)
        if target is None:
            return directions, None
        terms = loss.spec.terms
        targets = {
            index: project_target(terms[index], target, own, like.shape).detach()
            for index, own in directions.items()
        }
        without = {i: own._replace(target=None) for i, own in directions.items()}
        return without, targets


def _is_inside(loss: SobolevLoss, call: Call) -> bool:
    teacher = loss.teacher
    if not isinstance(teacher, NetworkTeacher) or teacher.takes == "call":
        return False
    if teacher.inputs is not None:  # of the batch, which the compiled call does not see
        return False
    is_alone = teacher.takes == "input" or not call.accepts(teacher.network)
    return is_alone and all(term.projection != FISHER for term in loss.spec.terms)


def _evaluation(
    forward: Callable[..., Any], loss: SobolevLoss, recorder: Recorder,
    terms: Mapping[int, SobolevTerm], low: torch.dtype | None,
) -> Callable[..., Joint]:  # fmt: skip
    on, output, gaps = loss.spec.output_map, recorder.options.output, loss.gaps
    teacher = loss.teacher if isinstance(loss.teacher, NetworkTeacher) else None

    def evaluate(
        x: Tensor, inputs: Inputs, place: Place,
        directions: Mapping[int, Directions], targets: Targets,
    ) -> Joint:  # fmt: skip
        place_of_y: list[Any] = []

        def student(point: Tensor) -> tuple[Tensor, Any]:
            filled = place.fill(inputs, point)
            dtype, device = low or torch.bfloat16, x.device.type
            with torch.autocast(device, dtype=dtype, enabled=low is not None):
                result = forward(*filled["args"], **filled["kwargs"])
            place_of_y[:] = locate_output(result, output, len(x))
            y = select_output(result, tuple(place_of_y), len(x))
            return mapped(on, y, x), (result, y)

        asked = {index: term for index, term in terms.items() if index in directions}
        given: Any = targets
        if targets is None:
            given = {}
            if teacher is not None and asked:
                given = lambda point: teacher.function(on, x.dtype, tuple(place_of_y))(point)  # noqa: E731
        return value_and_comparisons(student, x, asked, (directions, given), gaps)

    return evaluate


def value_and_comparisons(
    student: Callable[[Tensor], tuple[Tensor, Any]], x: Tensor, terms: Mapping[int, SobolevTerm],
    asked: tuple[Mapping[int, Directions], BatchFn | Mapping[int, Tensor]], gaps: Gaps,
) -> Joint:  # fmt: skip
    """Return a student's value and its distances from its teacher, with a graph.

    One forward pass of the student and, for each projection, the passes of a :class:`FuncJet`; the
    same for a teacher that is given as a function. Assumes row independence, and norms written out
    where columns are trained on. Looks at no number and draws none.
    """
    directions, targets = asked
    jet = FuncJet(student, x, has_aux=True)
    teacher = None if isinstance(targets, Mapping) else FuncJet(targets, x.detach())
    comparisons: dict[int, Comparison] = {}
    for index, term in terms.items():
        own = directions[index]
        if isinstance(targets, Mapping):
            rows = targets[index]
        else:
            assert teacher is not None
            rows = project_target(term, teacher, own, jet.value.shape)
        comparisons[index] = compare(term, project(term, jet, own), rows, gaps)
    return Joint(jet.aux, jet.value, comparisons)


def _shapes(inputs: Inputs, point: Tensor) -> tuple[Any, ...]:
    leaves = [point, *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))]
    return tuple((leaf.shape, leaf.dtype) for leaf in leaves)
