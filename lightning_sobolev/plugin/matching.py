"""One callback's part in one training step: observe, ask the teacher, sum the terms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._types import Jet, Teacher
from lightning_sobolev.draws import Draws
from lightning_sobolev.objective import Matched, RunningScales, match, reduced
from lightning_sobolev.plugin.observation import Observation, Probe
from lightning_sobolev.plugin.observe import Call, Observer
from lightning_sobolev.plugin.outcome import Outcome
from lightning_sobolev.plugin.precision import in_single
from lightning_sobolev.plugin.protect import batch_norm_aside, explained, kept_gathered, protected
from lightning_sobolev.plugin.select import Wrt
from lightning_sobolev.spec import SobolevSpec, SobolevTerm
from lightning_sobolev.teachers import NetworkTeacher


@dataclass(frozen=True)
class Policy:
    """What a callback was told, resolved for one module.

    Args:
        teacher: Answers at the observed inputs.
        spec: The terms.
        module: Name of the observed submodule, or None.
        wrt: Path of the input, or several.
        output: Path of the output.
        call: Which call counts.
        engine: ``"tape"`` or ``"func"``.
        batch_norm: ``"eval"``: derivatives in a second forward with batch norms in eval mode.
        compiled: Whether something in the step is compiled.
        non_finite: What happens to rows whose target is NaN or Inf.
        precision: Of the derivatives: ``"float32"`` or ``"step"``.
        half: Whether the trainer's steps run in half precision.
    """

    teacher: Teacher
    spec: SobolevSpec
    module: str | None
    wrt: Wrt
    output: str | int | None
    call: Call
    engine: str
    batch_norm: str
    compiled: bool
    non_finite: Literal["raise", "skip"] = "raise"
    precision: str = "float32"
    half: bool = False

    @property
    def pushed(self) -> int | None:
        """Index of the term whose tangents the func engine pushes through the forward itself."""
        terms = self.spec.terms
        tangents = [i for i, t in enumerate(terms) if t.order == 1 and t.side == "tangent"]
        alone = len(tangents) == 1 and not any(t.needs_cotangents for t in terms)
        return tangents[0] if alone and self.engine == "func" else None

    @property
    def only_again(self) -> bool:
        """Whether every term is evaluated by a forward of its own."""
        return self.batch_norm == "eval" or all(term.rows < 1.0 for term in self.spec.terms)

    @property
    def exact_norms(self) -> bool:
        """Whether norms must be written out for the parameter gradients to be right."""
        return any(term.needs_tangents for term in self.spec.terms)


class StepPart:
    """Implements :class:`lightning_sobolev.plugin.step.Part`.

    Args:
        root: The LightningModule.
        policy: What is matched.
        draws: Random choices of this step.
        finish: Called with the observations and the batch; evaluates, logs, and returns the loss.
    """

    def __init__(
        self,
        root: nn.Module,
        policy: Policy,
        draws: Draws,
        finish: Callable[[list[Observation], Any], Tensor],
    ) -> None:
        self._root, self._policy, self._finish = root, policy, finish
        probe = make_probe(policy, draws)
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
        policy = self._policy
        remedies = protected(self._root, exact_norms=policy.exact_norms, compiled=policy.compiled)
        with remedies, self._observer.watching(), explained():
            yield

    def loss(self, batch: Any) -> Tensor:
        """Return the weighted sum of the terms; logs them."""
        with self._observer.paused():
            return self._finish(self._observer.chosen(), batch)


def make_probe(policy: Policy, draws: Draws) -> Probe:
    """Say how the student's call is observed.

    Args:
        policy: What is matched.
        draws: Random choices of the step.

    Returns:
        The probe. It pushes tangents through the forward itself when forward mode is all there is.
    """

    def tangents(x: Tensor) -> Tensor | None:
        index = policy.pushed
        return None if index is None else draws.tangents(index, policy.spec.terms[index], x)

    on, precise = policy.spec.output_map, policy.precision == "float32"
    return Probe(policy.wrt, policy.output, on, policy.engine, tangents, precise)


def make_forward(module: nn.Module, policy: Policy) -> Callable[..., Any]:
    """Say how the student is called for the derivative alone, in at least float32.

    Args:
        module: The observed module; its running statistics stay.
        policy: Whether batch norms are held in eval mode.

    Returns:
        Calls it. Enters eval mode anew each time: the func engine may call once more later.
    """
    call = in_single(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with batch_norm_aside(module, evaluate=policy.batch_norm == "eval"):
            return call(*args, **kwargs)

    return forward


def evaluate(
    observations: list[Observation],
    batch: Any,
    policy: Policy,
    draws: Draws,
    weights: dict[str, float],
    scales: RunningScales,
    sum_over_processes: Callable[[Tensor], Tensor],
) -> Outcome:
    """Evaluate every term with a weight, averaged over the observations.

    Args:
        observations: The student's observed calls.
        batch: The batch, for teachers that read it.
        policy: What is matched.
        draws: Random choices of the step.
        weights: Weight of each term at this step; a term of weight 0 costs nothing.
        scales: Running scales, changed in place.
        sum_over_processes: Sums a small vector over processes.

    Returns:
        The unweighted terms and what there is to report.
    """
    outcome = Outcome()
    jets: dict[tuple[int, float], tuple[Observation, Jet, Jet]] = {}
    for index, term in enumerate(policy.spec.terms):
        if weights[term.key] == 0.0:
            continue
        matched = []
        for number, seen in enumerate(observations):
            where = (number, term.rows)
            if where not in jets:
                jets[where] = _jets(seen, term.rows, batch, policy, draws)
            matched.append(_match_one(index, term, *jets[where], policy, draws, outcome))
        distance, reference, known = (torch.cat(part, dim=1) for part in zip(*matched, strict=True))
        if policy.teacher.allows_unknown:
            skipped = outcome.skipped.get(term.key, 0)
            outcome.unknown[term.key] = float((~known).all(0).sum()) - skipped
        may_be_blind = policy.teacher.allows_unknown or policy.non_finite == "skip"
        if may_be_blind and not bool(known.any()):
            outcome.blind.append(term.key)
        joined = Matched(distance, reference, known)
        outcome.terms[term.key] = reduced(term, joined, scales, sum_over_processes)
    return outcome


def _jets(
    seen: Observation, fraction: float, batch: Any, policy: Policy, draws: Draws
) -> tuple[Observation, Jet, Jet]:
    rows = None if fraction == 1.0 else draws.rows(fraction, seen.size).to(seen.x.device)
    if rows is not None or policy.batch_norm == "eval" or seen.coarse:
        batch = batch if rows is None else _paths.take_rows(batch, rows, seen.size)
        seen = seen.again(rows, make_forward(seen.module, policy), make_probe(policy, draws))
    x, on, teacher = seen.x.detach(), policy.spec.output_map, policy.teacher
    if isinstance(teacher, NetworkTeacher) and teacher.takes == "call":
        return seen, seen.jet(), teacher.at(x, on, batch, call=seen.call)
    return seen, seen.jet(), teacher.at(x, on, batch)


def _match_one(
    index: int,
    term: SobolevTerm,
    seen: Observation,
    student: Jet,
    target: Jet,
    policy: Policy,
    draws: Draws,
    outcome: Outcome,
) -> tuple[Tensor, Tensor, Tensor]:
    cotangents = tangents = None
    if term.needs_cotangents:
        cotangents = draws.cotangents(index, term, student.value, target)
    if term.needs_tangents:
        ready = seen.tangents
        tangents = ready if ready is not None else draws.tangents(index, term, seen.x)
    with kept_gathered(seen.module):
        matched = match(
            term,
            student,
            target,
            cotangents=cotangents,
            tangents=tangents,
            allows_unknown=policy.teacher.allows_unknown,
            non_finite=policy.non_finite,
        )
    if policy.non_finite == "skip":
        outcome.skipped[term.key] = outcome.skipped.get(term.key, 0) + matched.skipped
    if term.order == 2 and matched.vanishes:
        outcome.zero_curvature.append(term.key)
    return matched.distance, matched.reference, matched.known
