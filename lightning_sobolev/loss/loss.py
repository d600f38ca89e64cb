"""The loss of derivatives, in torch alone: asked, derived, compared, reduced, reported.

Callback, mixin, Fabric and plain loops, the doctor and the cost meter all call this one.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Directions, Jet, Query, Teacher
from lightning_sobolev.functional.fisher import FISHER
from lightning_sobolev.loss import checks, recorded
from lightning_sobolev.loss.at_once import AtOnce, Projections
from lightning_sobolev.loss.balance import Balanced, RunningBalance
from lightning_sobolev.loss.checks import Checks
from lightning_sobolev.loss.compare import (
    Comparison,
    Gaps,
    check_target,
    compare,
    project,
    project_target,
)
from lightning_sobolev.loss.draws import Draws, Generators
from lightning_sobolev.loss.reduce import RunningScales, SumOverProcesses, in_groups, join, reduce
from lightning_sobolev.loss.report import Report, cosine
from lightning_sobolev.observe.call import Call, ReplayOptions
from lightning_sobolev.observe.options import ObserveOptions, check_word
from lightning_sobolev.observe.recorder import Needs, Observed, Push, Recorder
from lightning_sobolev.observe.remedies import Remedies, explain, has_recurrent, kept_gathered
from lightning_sobolev.points import points_at
from lightning_sobolev.spec import SobolevSpec, SobolevTerm
from lightning_sobolev.teachers.network import as_teacher
from lightning_sobolev.teachers.tabulated import TabulatedJet
from lightning_sobolev.teachers.trace import TraceTeacher

_RECENT = 4
"""Students of one loop, of which is known what has rows."""


@dataclass(slots=True, eq=False)
class Occasion:
    """On which occasion terms are evaluated.

    Args:
        number: Number of the evaluation, which its draws depend on.
        at: Returns the global step, which some weights depend on.
        batch: What the step was given.
        value_loss: The loss that balanced weights are measured against.
        offset: Number of calls of the same step that were evaluated before.
        parameters: What is trained; None: the parameters of the observed module.
        trains: Whether a graph to the parameters is expected.
    """

    number: int
    at: Callable[[], int]
    batch: Any = None
    value_loss: Tensor | None = None
    offset: int = 0
    parameters: Callable[[], Any] | None = None
    trains: bool = True

    @property
    def step(self) -> int:
        """The global step; asked for only where something depends on it."""
        return self.at()


@dataclass(slots=True, eq=False)
class Point:
    """Where a call's terms are evaluated: at the call itself or at a replay on some rows."""

    seen: Observed
    draws: Draws
    query: Query
    student: Jet | None = None  # None: the call has compared them itself
    target: Jet | None = None


_Asked = tuple[Point, Directions, Tensor | None]
_AS_IT_IS = nullcontext()


class SobolevLoss:
    r"""Derivative matching as a loss, for any loop.

    .. math:: \sum_j w_j\,\text{term}_j

    of the terms between the observed module and the teacher at the observed input.

    Cost: for one order-1 projection about 2 to 3 times a plain step. Assumes that row b of the
    student's output depends on row b of its input alone.

    Args:
        teacher: Answers with value and derivatives; a module is wrapped in a
            :class:`~lightning_sobolev.teachers.NetworkTeacher`.
        terms: What is matched: a term, several, or a whole :class:`SobolevSpec`; None: what the
            teacher can give, in general one projection of the Jacobian with weight 1.
        on: Output map, where ``terms`` is no spec.
        seed: Seed of the projections; processes differ, resumed runs continue.
        non_finite: ``"raise"`` refuses a teacher's answer with NaN or Inf; ``"skip"`` leaves such
            rows out of the term and counts them.
        at_once: How many of a term's projections one backward pass carries. None: of more than
            eight, one or sixteen, what the first evaluation finds faster; 1: one; N: always N.
            The numbers are the same to rounding. What is needed for no graph takes N times the
            memory; the graph of a term is as large in any case.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Czarnecki et al. 2017, Sobolev Training for Neural Networks (arXiv:1706.04859): objective
        with stochastic projections.

    Example:
        >>> net, teacher = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> x, y = torch.ones(3, 2), torch.ones(3, 1)
        >>> loss_fn = SobolevLoss(teacher)
        >>> with loss_fn.observe(net):
        ...     value = (net(x) - y).square().mean()
        >>> (value + loss_fn()).backward()
    """

    def __init__(
        self,
        teacher: Teacher | nn.Module,
        terms: SobolevTerm | Sequence[SobolevTerm] | SobolevSpec | None = None,
        *,
        on: str | Callable[[Tensor], Tensor] = "identity",
        seed: int = 0,
        non_finite: Literal["raise", "skip"] = "raise",
        at_once: int | None = None,
    ) -> None:
        check_word("non_finite", non_finite, ("raise", "skip"))
        self.teacher = as_teacher(teacher)
        self.spec = as_spec(terms, on, self.teacher)
        _check_estimates(self.spec, self.teacher)
        _check_points(self.spec, self.teacher)
        self.seed, self.non_finite, self.at_once = seed, non_finite, AtOnce(at_once)
        self.gaps = Gaps(self.teacher.allows_unknown, non_finite)
        self.checks = Checks()
        self.forgives_overflow = False
        self._generators: Generators = {}
        # Columns of a teacher are a second derivative of its graph.
        terms = self.spec.terms
        twice = any(term.needs_tangents for term in terms)
        self._asking: Any = Remedies(recurrent=True) if twice else _AS_IT_IS
        # Resolved once: what is asked for at every step.
        self._on = self.spec.output_map
        self._is_balanced = any(isinstance(term.weight, Balanced) for term in terms)
        self._constants = [
            float(term.weight)
            if isinstance(term.weight, int | float) and term.every_n_steps == 1
            else None
            for term in terms
        ]
        asks = type(self.teacher).directions is not Teacher.directions
        self._own_directions = self.teacher.directions if asks else None
        self._may_be_many = [asks or term.num_projections != 1 for term in terms]
        self._recorder: Recorder | None = None
        self._recent: list[Recorder] = []
        self.witnesses: list[Callable[[Point], None]] = []
        """Who is shown every point of a training step, with what the teacher answered there."""
        self.counter = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew with scales, weights and choices, and look at student and processes again.

        The draws go on: no two trainings with one loss have the same.
        """
        self.scales, self.balance = RunningScales(), RunningBalance()
        self.at_once.chosen = {}
        self.is_dropped = False  # all terms have weight zero from now on
        self.begin()

    def begin(self) -> None:
        """Look at the student's backward pass again, and at the processes there are."""
        self._known: set[str] = set()  # what was looked at or said
        self.reads_at_once: bool | None = None  # where that makes nobody wait
        is_several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if is_several else 0
        self._sum: SumOverProcesses | None = sum_over_processes if is_several else None

    def on_its_own(self) -> Self:
        """Sum over no processes from now on: for what one of several does alone."""
        self._sum = None
        return self

    @property
    def term_keys(self) -> list[str]:
        """Names under which the terms are reported."""
        return [term.key for term in self.spec.terms]

    @property
    def pushed_term(self) -> int | None:
        """Index of the term whose tangents the func engine pushes through the forward itself."""
        terms = self.spec.terms
        tangents = [i for i, t in enumerate(terms) if t.order == 1 and t.side == "tangent"]
        alone = len(tangents) == 1 and not any(t.needs_cotangents for t in terms)
        return tangents[0] if alone else None

    @contextmanager
    def observe(self, module: nn.Module, *, batch: Any = None, **where: Any) -> Iterator[Recorder]:
        """Observe the calls of a module that are made inside; the next evaluation is of them.

        Args:
            module: The student.
            batch: What holds the index of ``groups`` where the module is not called with it.
            **where: As for :class:`~lightning_sobolev.observe.ObserveOptions`.

        Yields:
            Who records the calls.
        """
        recorder = self.recorder_of(module, None, ObserveOptions(**where))
        # What has rows is learned by replays: once, not in every step of a loop.
        like = [one for one in self._recent if one.is_like(recorder)]
        recorder.row_axes = like[0].row_axes if like else recorder.row_axes
        self._recent = [recorder, *(one for one in self._recent if one not in like)][:_RECENT]
        recorder.batch = batch
        # The root itself is meant; a child is not, as it may be in a LightningModule.
        recorder.install()
        recorder.start()
        if recorder.engine == "func":
            number = self.counter
            recorder.push = self.push(Occasion(number, lambda: number))
        try:
            yield recorder
        finally:
            recorder.stop()
            recorder.remove()
            self._recorder = recorder

    def recorder_of(
        self, root: nn.Module, target: str | None, options: ObserveOptions, *,
        every_call: bool = False, compiled: bool = False,
    ) -> Recorder:  # fmt: skip
        """Return a recorder that gives what the terms need."""
        terms = self.spec.terms
        exact = any(term.needs_tangents for term in terms)
        student = root if target is None else root.get_submodule(target)
        remedies = Remedies(exact_norms=exact, recurrent=has_recurrent(student), compiled=compiled)
        in_eval = options.batch_norm == "eval"
        needs = Needs(
            on=self.spec.output_map,
            parts=any(term.rows < 1.0 or term.points is not None for term in terms),
            only_parts=all(term.rows < 1.0 or term.points is not None for term in terms),
            every_call=every_call,
            replays=options.engine == "func",
        )
        how = ReplayOptions(options.inner_precision, in_eval, remedies)
        return Recorder(root, target, options, needs, how, self.teacher.networks)

    def __call__(
        self,
        observed: Sequence[Observed] | None = None,
        batch: Any = None,
        *,
        step: int | None = None,
        value_loss: Tensor | None = None,
    ) -> Report:
        """Evaluate the terms at what was observed.

        Args:
            observed: Calls; None for those of the last :meth:`observe`.
            batch: What a teacher looks its answers up in.
            step: Global step, for schedules; None counts the evaluations.
            value_loss: The loss that :class:`Balanced` weights are measured against.

        Returns:
            The terms and their weighted sum.

        Raises:
            ValueError: If nothing was observed, or a term cannot be evaluated.
            FloatingPointError: If a term is not finite.
        """
        if observed is None:
            require(self._recorder is not None, "observed", "made in observe()", None)
            assert self._recorder is not None
            observed = self._recorder.chosen()
        if not observed:  # missing="skip"
            return Report(torch.zeros(()))
        self.checks.flush()
        number, self.counter = self.counter, self.counter + 1
        now = number if step is None else step
        return self.evaluate(observed, Occasion(number, lambda: now, batch, value_loss))

    def evaluate(self, observed: Sequence[Observed], occasion: Occasion) -> Report:
        """Evaluate the terms on an occasion whose number was given out before."""
        first = observed[0]
        device = first.x.device.type
        autocast = torch.is_autocast_enabled(device)
        report = Report(first.x, size=first.x.shape[0])
        if self.reads_at_once is None:
            self.reads_at_once = checks.is_free(first.x.device)
        with torch.autocast(device, enabled=False) if autocast else _AS_IT_IS:
            # The teacher is asked for all terms, so that its graph is gone before the student's
            # grows.
            asked = self._asked(observed, occasion, report)
            for point in report.points.values():
                point.target = None
            for index, parts in asked:
                compared = [self._compare(index, part, report, occasion) for part in parts]
                whole = compared[0] if len(compared) == 1 else join(compared)
                self._take_in(self.spec.terms[index], whole, report)
            self._sum_up(observed, report, occasion)
        self._settle(observed, report, occasion)
        return report

    def _asked(
        self, observed: Sequence[Observed], occasion: Occasion, report: Report
    ) -> list[tuple[int, list[_Asked]]]:
        asked = []
        for index, term in enumerate(self.spec.terms):
            weight = self._constants[index]
            weight = term.weight_at(occasion.step) if weight is None else weight
            weight = 0.0 if self.is_dropped else weight
            report.weights[term.key] = weight
            if weight == 0.0:
                continue
            parts: list[_Asked] = []
            for number, seen in enumerate(observed):
                place = (number, term.rows, term.points)
                point = report.points.get(place)
                if point is None:
                    point = self._point(seen, number, index, occasion)
                    report.points[place] = point
                    if point.seen.x.is_leaf and point.seen.x.requires_grad:
                        report.leaves.append(point.seen.x)
                parts.append(self._ask(index, point, occasion.trains))
            asked.append((index, parts))
        return asked

    def _point(self, seen: Observed, number: int, index: int, occasion: Occasion) -> Point:
        place, term = occasion.offset + number, self.spec.terms[index]
        fraction, points = term.rows, term.points
        draws = Draws(self.seed, self.rank, occasion.number, place, self._generators)
        rows, x, at = None, seen.x, None
        if fraction < 1.0 and seen.size:
            rows = draws.rows(fraction, seen.size).to(x.device)
        if points is not None:
            require(seen.call.groups is None, "points", "None with groups=", points)
            at = points_at(points, x.detach(), draws.points(index, x.device), occasion.at)
        if rows is not None or seen.replay_only or at is not None:
            pushes = seen.recorder.engine == "func" and self.pushed_term is not None
            push = self.push(occasion, place) if pushes else None
            seen = seen.replay(rows, fraction, push, at)
        call, batch = seen.call, occasion.batch
        x, groups = seen.x.detach(), call.groups
        rows = rows if groups is None else call.rows
        seed = (self.seed, self.rank, occasion.number, place)
        query = Query(x, self._on, batch, rows, call, occasion.number, call.alone, groups, seed)
        if seen.comparisons is not None:
            return Point(seen, draws, query)
        try:
            with self._asking:
                target = self.teacher.at(query)
        except RuntimeError as error:
            explain(error)
            raise
        point = Point(seen, draws, query, seen.jet(), target)
        if occasion.trains and points is None:  # they look at the points of the data alone
            for witness in tuple(self.witnesses):  # and may leave
                witness(point)
        return point

    def _ask(self, index: int, point: Point, trains: bool) -> _Asked:
        student, target, term = point.student, point.target, self.spec.terms[index]
        if student is None or target is None:
            return point, Directions(), None
        y = student.value
        directions = self.directions(index, point, y)
        if not self._may_be_many[index]:
            return point, directions, project_target(term, target, directions, y.shape)
        asked = Projections(f"{term.key}/teacher", term, target, directions, y.shape)
        return point, directions, self.at_once.take(asked, () if trains else None, self._sum)

    def directions(self, index: int, point: Point, y: Tensor) -> Directions:
        """Return what term number ``index`` is projected on; ``y`` is like the output."""
        term, draws = self.spec.terms[index], point.draws
        if term.order == 0:
            return Directions()
        if self._own_directions is not None:
            own = self._own_directions(point.query, term)
            if own is not None:
                return _fitting(own, term, y)
        cotangents = tangents = None
        if term.needs_cotangents:
            target = point.target
            log_probs = None if target is None or term.projection != FISHER else target.value
            if log_probs is not None and self.gaps.allows_unknown:
                # NaN in a direction would be NaN in the student's gradient, masked or not.
                log_probs = log_probs.masked_fill(log_probs.isnan(), -torch.inf)
            groups = point.query.groups
            if groups is not None and groups.per_row and isinstance(target, TabulatedJet):
                # The stored derivative is that of the graph's sum.
                drawn = draws.cotangents(index, term, y.new_empty(groups.count, *y.shape[1:]))
                return Directions(drawn.index_select(1, groups.index))
            coupled = groups if groups is not None and groups.per_row else None
            cotangents = draws.cotangents(index, term, y, log_probs, coupled)
        if term.needs_tangents:
            tangents, groups = point.seen.tangents, point.query.groups
            # Forward mode begins before the output says what the groups are.
            if tangents is None or (groups is not None and term.projection == "basis"):
                tangents = draws.tangents(index, term, point.query.x, groups)
        return Directions(cotangents, tangents)

    def push(self, occasion: Occasion, offset: int = 0) -> Push:
        """Return who gives forward mode its tangents, once the input is known."""
        index, number = self.pushed_term, occasion.number

        def tangents(call: Call, x: Tensor, place: int) -> Tensor | None:
            # A teacher's own may depend on the groups, which the output tells: a pullback is
            # transposed instead.
            if index is None or self._own_directions is not None:
                return None
            draws = Draws(self.seed, self.rank, number, place + offset, self._generators)
            return draws.tangents(index, self.spec.terms[index], x, call.groups)

        return tangents

    def _compare(self, index: int, asked: _Asked, report: Report, occasion: Occasion) -> Comparison:
        (point, directions, target), term = asked, self.spec.terms[index]
        seen, unknown = point.seen, self.gaps.allows_unknown
        if seen.comparisons is not None:
            comparison: Comparison = seen.comparisons[index]
        else:
            assert target is not None
            rows = self._derived(index, point, directions, occasion.trains)
            comparison = compare(term, rows, target, self.gaps)
            if seen.call.groups is not None:
                comparison = in_groups(term, comparison, seen.call.groups)
            if not occasion.trains:
                own = target.reshape(rows.shape)
                report.cosines[term.key] = cosine(rows, own, comparison.known)
        held = target if self.reads_at_once else None  # where it waits, memory is dear
        report.targets.append((term, held))
        if self.gaps.non_finite == "raise" and comparison.total is not None:
            judge = lambda total: check_target(term, total, held, unknown)  # noqa: E731
            report.pending.append((comparison.total, judge))
        return comparison

    def _derived(self, index: int, point: Point, directions: Directions, trains: bool) -> Tensor:
        seen, student, recorder = point.seen, point.student, point.seen.recorder
        term = self.spec.terms[index]
        assert student is not None
        gathered = kept_gathered(seen.call.module) if recorder.is_sharded else _AS_IT_IS
        checks_graph = trains and term.order > 0 and len(seen.x) > 0
        try:
            # A checkpoint inside the student is computed again in here.
            with recorder.replay_options.remedies.recomputing, gathered:
                if checks_graph and term.key not in self._known:
                    self._known.add(term.key)  # before the rows: both at once take more memory
                    inner = recorder.options.inner_precision
                    recorded.check_linear(term, student, inner, recorder.root)
                if self._may_be_many[index]:
                    asked = Projections(term.key, term, student, directions)
                    trained = _trained(seen) if trains and not recorder.is_sharded else None
                    rows = self.at_once.take(asked, trained, self._sum)
                else:
                    rows = project(term, student, directions)
                rows = rows if directions.read is None else directions.read(rows)
                if checks_graph and not rows.requires_grad:
                    recorded.check_graph(term, rows, recorder.root)
                return rows
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise ValueError(_FREED) from error
            explain(error)
            raise

    def _take_in(self, term: SobolevTerm, comparison: Comparison, report: Report) -> None:
        key = term.key
        if comparison.known is not None or comparison.skipped is not None or term.order == 2:
            report.take_in(key, comparison, counts_unknown=self.gaps.allows_unknown)
        value, energy = reduce(term, comparison, self.scales, self._sum)
        report.terms[key] = value
        if energy is not None:
            given, unknown = report.targets, self.gaps.allows_unknown
            judge = lambda size: _check_energy(term, size, given, unknown)  # noqa: E731
            report.pending.append((energy, judge))

    def _sum_up(self, observed: Sequence[Observed], report: Report, occasion: Occasion) -> None:
        if self._is_balanced and occasion.trains and not self.is_dropped:
            value_loss = occasion.value_loss
            require(value_loss is not None, "value_loss", "given for a balanced weight", None)
            assert value_loss is not None
            parameters = occasion.parameters or observed[0].call.module.parameters
            report.weights = self.balance.weights(
                report.terms, self.spec.terms, occasion.step, value_loss, parameters,
                self._sum or _alone,
            )  # fmt: skip
        weights, total = report.weights, None
        for key, term in report.terms.items():
            weighted = term if weights[key] == 1.0 else weights[key] * term
            total = weighted if total is None else total + weighted
        report.loss = observed[0].x.new_zeros(()) if total is None else total
        if self._sum is not None:
            report.loss = report.loss + attached(observed)

    def _settle(self, observed: Sequence[Observed], report: Report, occasion: Occasion) -> None:
        outputs = [seen.y.detach() for seen in observed]
        at = occasion.at if self.reads_at_once else partial(int, occasion.step)
        for key, value in report.terms.items() if occasion.trains else ():
            report.pending.append((value, partial(self._judge, key, outputs, at)))
        # Who judges holds targets, which the backward pass can do without.
        pending, report.pending, report.points, report.targets = report.pending, [], {}, []
        if not self.reads_at_once:
            self.checks.settle(pending)
            return
        for number, judge in pending:  # at every step: no number that is one is judged
            found = number.item()
            if not math.isfinite(found):
                judge(found)

    def _judge(self, key: str, outputs: list[Tensor], at: Callable[[], int], number: float) -> None:
        # The targets are finite: they were checked before.
        if math.isfinite(number):
            return
        if self.forgives_overflow:
            if "overflow" not in self._known:
                self._known.add("overflow")
                text = f"term {key!r} must be finite, got {number}"
                warnings.warn(f"{text}; the gradient scaler skips such steps", stacklevel=2)
            return
        culprit = _CULPRITS[all(bool(y.isfinite().all()) for y in outputs)]
        raise FloatingPointError(
            f"term {key!r} must be finite, got {number} at step {at()}: {culprit}"
        )

    def end(self, report: Report, loss: Tensor, leaves: list[Tensor], module: nn.Module) -> None:
        """Let go of a report's graphs behind its backward pass, and look at the gradients.

        Raises:
            FloatingPointError: If a finite loss has left NaN in a parameter's gradient; where
                looking takes waiting, a step later.
        """
        report.loss, report.leaves = report.loss.detach(), []
        for key, term in report.terms.items():
            report.terms[key] = term.detach()
        if self.forgives_overflow:
            return
        # What is no number anywhere in the student is none in the gradient of its input.
        size = leaves[0].grad if len(leaves) == 1 else None
        if size is None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if not gradients:
                return
            size = get_total_norm([getattr(grad, "_local_tensor", grad) for grad in gradients])
        size = size.detach().sum() if size.ndim else size
        # A loss that is no number itself is its user's to see.
        if self.reads_at_once:
            if not math.isfinite(size.item()) and math.isfinite(loss.item()):
                recorded.refuse_nan(module)
            return
        size = torch.where(loss.detach().isfinite(), size, torch.zeros_like(size))
        judge = lambda number: None if math.isfinite(number) else recorded.refuse_nan(module)  # noqa: E731
        self.checks.settle([(size, judge)])

    @property
    def remedies(self) -> Any:
        """A context for the backward pass of a plain loop whose student has checkpoints inside."""
        require(self._recorder is not None, "observe()", "called before", None)
        assert self._recorder is not None
        return self._recorder.replay_options.remedies.recomputing

    def validate(self, observed: Sequence[Observed], occasion: Occasion) -> Report:
        """Evaluate the terms and their cosines without a trace, also under inference mode.

        The draws are those of the occasion's number and the scales those of the training; where
        there are none yet, each batch is divided by its own.

        Returns:
            Terms and cosines, each process's own.
        """
        self.scales.frozen, processes, self._sum = True, self._sum, None
        try:
            with torch.inference_mode(False), torch.enable_grad():
                occasion.batch = _paths.map_tensors(occasion.batch, torch.clone)
                return self.evaluate([seen.outside_of_inference() for seen in observed], occasion)
        finally:
            self.scales.frozen, self._sum = False, processes

    def mark(self) -> tuple[Any, ...]:
        """Return where it stands, for :meth:`go_back`."""
        return self.counter, dict(self.scales.state), dict(self.balance.state)

    def go_back(self, mark: tuple[Any, ...]) -> None:
        """Forget what was evaluated since a :meth:`mark`."""
        self.counter, scales, balance = mark
        self.scales.state, self.balance.state = dict(scales), dict(balance)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors: all that a resumed run needs to go on exactly."""
        scales = {k: {"mean": mean, "count": n} for k, (mean, n) in self.scales.state.items()}
        dropped = {"dropped": True} if self.is_dropped else {}
        return {
            "counter": self.counter, "scales": scales, "balance": dict(self.balance.state),
            "at_once": dict(self.at_once.chosen), **dropped,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` said."""
        self.counter = int(state["counter"])
        self.balance.state = dict(state.get("balance", {}))  # older checkpoints have none
        self.at_once.chosen = dict(state.get("at_once", {}))
        self.is_dropped = bool(state.get("dropped", False))
        saved = state["scales"]
        self.scales.state = {k: (s["mean"], int(s["count"])) for k, s in saved.items()}


def as_spec(terms: Any, on: str | Callable[[Tensor], Tensor], teacher: Teacher) -> SobolevSpec:
    """Return what is matched; the teacher says so where nobody else does."""
    if isinstance(terms, SobolevSpec):
        require(on == "identity", "on", "that of the SobolevSpec", on)
        return terms
    if terms is None:
        terms = teacher.default_term or SobolevTerm()
    return SobolevSpec(terms=[terms] if isinstance(terms, SobolevTerm) else terms, on=on)


def attached(observed: Sequence[Observed]) -> Tensor:
    """Return a zero whose graph reaches every observed output: DDP must finish its reduction."""
    # The last bias has no part in any derivative; without a path to it ranks drift apart.
    # The sum over no rows is zero even where an output is infinite, as masked logits are.
    nothing = [seen.y[:0].float().sum() for seen in observed]
    return nothing[0] if len(nothing) == 1 else torch.stack(nothing).sum()


def _trained(seen: Observed) -> list[Tensor]:
    return [p for p in seen.call.module.parameters() if p.requires_grad]


def sum_over_processes(total: Tensor) -> Tensor:
    """Sum over processes, in place, so that all of them use one scale."""
    torch.distributed.all_reduce(total)
    return total


def _alone(total: Tensor) -> Tensor:
    return total


_FREED = (
    "call: the graph of the observed call must still be there, but the step has freed it (an "
    "attack or a penalty that differentiates the first call: FGSM, VAT); name the call that is "
    "trained, e.g. call=1, or keep its graph with retain_graph=True"
)


def _fitting(own: Directions, term: SobolevTerm, y: Tensor) -> Directions:
    if own.tangents is not None and term.band is not None:
        raise ValueError(
            f"band of term {term.key!r} must be None where the teacher knows its own tangents "
            f"alone, which cannot be filtered, got {term.band}"
        )
    whole = term.band is None or own.read is None
    require(whole, f"band of term {term.key!r}", "None where rows are not whole", term.band)
    cotangents = own.cotangents
    if cotangents is None:
        return own
    if cotangents.shape[1] != len(y) or cotangents[0].numel() != y.numel():
        hints = ("left and cotangents of a teacher are of the output's shape",
                 "second derivatives that are known along given directions are those of a scalar "
                 "output")  # fmt: skip
        raise ValueError(
            f"term {term.key!r}: the output must have the shape of the teacher's own cotangents, "
            f"{list(cotangents.shape[1:])}, got {list(y.shape)}; {hints[term.order - 1]}"
        )
    return own._replace(cotangents=cotangents.reshape(len(cotangents), *y.shape))


def _check_estimates(spec: SobolevSpec, teacher: Teacher) -> None:
    # Products of two independent projections of anything else have no expectation but zero.
    wrong = [t.key for t in spec.terms if t.discrepancy == "product"]
    if wrong and not isinstance(teacher, TraceTeacher):
        raise ValueError(
            f"discrepancy of term {wrong[0]!r} must be another than 'product', which multiplies "
            f"estimates of one number, with a {type(teacher).__name__}"
        )


def _check_points(spec: SobolevSpec, teacher: Teacher) -> None:
    moved = [term.key for term in spec.terms if term.points is not None]
    if moved and teacher.is_stored:
        raise ValueError(
            f"points of term {moved[0]!r} must be None with a {type(teacher).__name__}, which "
            "answers at the inputs of the data alone; a network or a formula can be asked anywhere"
        )


def _check_energy(
    term: SobolevTerm,
    energy: float,
    targets: list[tuple[SobolevTerm, Tensor | None]],
    unknown: bool,
) -> None:
    if math.isfinite(energy):
        return
    dtype: torch.dtype | str = "its own precision"
    for own, target in targets:
        if own is term:
            dtype = dtype if target is None else target.dtype
            check_target(term, energy, target, unknown)
    # One such batch would make the term zero for good.
    raise ValueError(
        f"the target of term {term.key!r} must be small enough to be squared in {dtype}, got a sum "
        f"of {energy}; rescale it or use normalize='none'"
    )


_CULPRITS = {
    True: "the student's output is finite and its derivative is not, or too large to be squared "
    "(a root or a norm at zero? half precision?)",
    False: "the student's own output is not finite, so training had diverged before",
}
