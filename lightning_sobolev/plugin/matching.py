"""One callback's part in one training step: observe, ask the teacher, sum the terms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._types import Jet
from lightning_sobolev.compared import Matched, check_target, joined
from lightning_sobolev.draws import Draws
from lightning_sobolev.objective import RunningScales, against, answer, reduced
from lightning_sobolev.plugin.compiled import Choices
from lightning_sobolev.plugin.observation import Observation
from lightning_sobolev.plugin.observe import Observer
from lightning_sobolev.plugin.outcome import Outcome
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.probing import make_forward, make_probe
from lightning_sobolev.plugin.protect import explained, kept_gathered
from lightning_sobolev.readings import Reader, at_once
from lightning_sobolev.spec import SobolevTerm


class StepPart:
    """One callback's part in one step; ``finish`` evaluates, logs, and returns the weighted sum."""

    def __init__(
        self,
        root: nn.Module,
        choices: Choices,
        finish: Callable[[list[Observation], Any, Tensor], Tensor],
        batch: Any = None,
    ) -> None:
        policy, self._finish = choices.policy, finish
        self._policy = policy
        call = None if policy.only_again else choices.call(rows=1.0, again=False, batch=batch)
        probe = make_probe(policy, choices.draws, batch, call)
        if policy.only_again:  # the step's own forward is then looked at, not differentiated
            probe = replace(probe, engine="tape")
        self._observer = Observer(root, policy.module, probe, policy.call)

    @property
    def captured(self) -> bool:
        """Whether anything has been observed so far."""
        return self._observer.captured

    @property
    def observed(self) -> list[tuple[Tensor, Tensor]]:
        """(x, y) of the observations that count."""
        return [(seen.x, seen.y) for seen in self._observer.chosen()]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Surround the user's step, and the evaluation of the terms, with the remedies."""
        with self._policy.protected(), self._observer.watching(), explained():
            yield

    def loss(self, batch: Any, value_loss: Tensor) -> Tensor:
        """Return the weighted sum of the terms; logs them."""
        with self._observer.paused():
            return self._finish(self._observer.chosen(), batch, value_loss)


@dataclass(frozen=True, slots=True)
class _Question:
    seen: Observation
    student: Jet | None = None  # None: the call has compared them itself
    cotangents: Tensor | None = None
    tangents: Tensor | None = None
    theirs: Tensor | None = None


def evaluate(
    observations: list[Observation], batch: Any, choices: Choices, scales: RunningScales,
    sum_over_processes: Callable[[Tensor], Tensor], read: Reader = at_once,
) -> Outcome:  # fmt: skip
    """Evaluate every term with a weight, averaged over the observations."""
    outcome, policy = Outcome(), choices.policy
    asked = _asked(observations, batch, choices)
    for index, questions in asked.items():
        term = policy.spec.terms[index]
        matched = [_match_one(index, term, question, policy, read) for question in questions]
        whole = matched[0] if len(matched) == 1 else joined(matched)
        outcome.take_in(term.key, whole, counts_unknown=policy.teacher.allows_unknown)
        outcome.terms[term.key] = reduced(term, whole, scales, sum_over_processes, read)
    return outcome


def _asked(
    observations: list[Observation], batch: Any, choices: Choices
) -> dict[int, list[_Question]]:
    # The teacher is asked for all terms, so that its graph is gone before the student's grows.
    jets: dict[tuple[int, float], tuple[Observation, Jet | None, Jet | None]] = {}
    asked: dict[int, list[_Question]] = {}
    for index, term in enumerate(choices.policy.spec.terms):
        if choices.weights[term.key] == 0.0:
            continue
        asked[index] = []
        for number, seen in enumerate(observations):
            where = (number, term.rows)
            if where not in jets:
                jets[where] = _jets(seen, term.rows, batch, choices)
            asked[index].append(_ask(index, term, *jets[where], choices.draws))
    return asked


def attached(observations: list[Observation]) -> Tensor:
    """Return a zero whose graph reaches every observed output: DDP must finish its reduction."""
    # The last bias has no part in any derivative; without a path to it ranks drift apart.
    # The sum over no rows is zero even where an output is infinite, as masked logits are.
    nothing = [seen.y[:0].float().sum() for seen in observations]
    return nothing[0] if len(nothing) == 1 else torch.stack(nothing).sum()


def _jets(
    seen: Observation, fraction: float, batch: Any, choices: Choices
) -> tuple[Observation, Jet | None, Jet | None]:
    policy, draws = choices.policy, choices.draws
    rows = None if fraction == 1.0 else draws.rows(fraction, seen.size).to(seen.x.device)
    if rows is not None or policy.again or seen.coarse:
        batch = batch if rows is None else _paths.take_rows(batch, rows, seen.size)
        call = choices.call(rows=fraction, again=True, batch=batch)
        probe = make_probe(policy, draws, batch, call)
        seen = seen.again(rows, make_forward(seen.module, policy), probe)
    if seen.matched is not None:
        return seen, None, None
    x, on, teacher = seen.x.detach(), policy.spec.output_map, policy.teacher
    more = {"call": seen.call} if getattr(teacher, "takes", "input") == "call" else {}
    return seen, seen.jet(), teacher.at(x, on, batch, **more)


def _ask(
    index: int, term: SobolevTerm, seen: Observation,
    student: Jet | None, target: Jet | None, draws: Draws,
) -> _Question:  # fmt: skip
    if student is None or target is None:
        return _Question(seen)
    cotangents = tangents = None
    if term.needs_cotangents:
        cotangents = draws.cotangents(index, term, student.value, target)
    if term.needs_tangents:
        ready = seen.tangents
        tangents = ready if ready is not None else draws.tangents(index, term, seen.x, target)
    theirs = answer(term, student, target, cotangents, tangents)
    return _Question(seen, student, cotangents, tangents, theirs)


def _match_one(
    index: int, term: SobolevTerm, question: _Question, policy: Policy, read: Reader
) -> Matched:
    seen, unknown = question.seen, policy.teacher.allows_unknown
    if seen.matched is not None:
        matched = seen.matched[index]
        assert matched.total is not None
        if policy.non_finite == "raise":
            read(matched.total, lambda total: check_target(term, total, None, unknown))
        return matched
    assert question.student is not None
    assert question.theirs is not None
    with kept_gathered(seen.module) if policy.sharded else nullcontext():
        return against(
            term, question.student, question.theirs,
            cotangents=question.cotangents, tangents=question.tangents,
            allows_unknown=unknown, non_finite=policy.non_finite, read=read,
        )  # fmt: skip
