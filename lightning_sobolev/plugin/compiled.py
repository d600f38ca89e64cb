"""The student's call, its derivatives and its terms as one compiled function.

The step stays as its user wrote it: what is compiled is the observed call. All that the
derivatives need (directions, the word of a teacher that is not a network) is there before it.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sobolev._types import Jet
from lightning_sobolev.draws import Draws
from lightning_sobolev.functional.fisher import FISHER
from lightning_sobolev.joint import Directions, Joint, value_and_matched
from lightning_sobolev.objective import answer
from lightning_sobolev.plugin.compiling import CompiledFunction, GivenUp, same_random_numbers
from lightning_sobolev.plugin.observation import CompiledCall, Observation, Probe, with_rows
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.precision import mapped
from lightning_sobolev.plugin.protect import batch_norm_aside
from lightning_sobolev.plugin.select import Inputs, Place, select_output
from lightning_sobolev.plugin.shadow import bare
from lightning_sobolev.teachers import NetworkTeacher

Said = Mapping[int, Tensor] | None
"""What the teacher said for each term; None for one that is evaluated inside the function."""


@dataclass(frozen=True)
class Asked:
    """What one call of the student is asked for; ``again`` if it is the derivative's own."""

    indices: tuple[int, ...]
    again: bool
    draws: Draws
    batch: Any


class Compiler:
    """Compiles the observed call of one module, once for each shape of its inputs."""

    def __init__(self, root: nn.Module, policy: Policy) -> None:
        self.given_up = False
        self._policy = policy
        self._watched = [root, *root.children()]
        if policy.module is not None:
            self._watched.append(root.get_submodule(policy.module))
        self._functions: dict[Any, CompiledFunction] = {}
        self._likes: dict[Any, tuple[torch.Size, torch.dtype]] = {}

    @property
    def graphs(self) -> int:
        """How many graphs were compiled, those of backward passes not counted."""
        return sum(function.graphs for function in self._functions.values())

    def observe(
        self, module: nn.Module, inputs: Inputs, place: Place, x: Tensor, probe: Probe, asked: Asked
    ) -> tuple[Observation, Any] | None:
        """Call the module and evaluate terms; None where it does not compile and the tape may."""
        device, low = x.device.type, self._autocast(asked, x.device.type)
        # The gradient in a leaf would be computed for nobody.
        point = x if x.grad_fn is not None else x.detach()
        aside = batch_norm_aside(module, evaluate=True) if asked.again else nullcontext()
        with bare(self._watched), torch.autocast(device, enabled=False), aside:
            function = self._function(module, probe, asked, low)
            shape = _shapes(inputs)
            like = self._like(function, shape, (point, inputs, place))
            seen = Observation(module, inputs, place, probe, x, like)
            directions, said = self._prepared(seen, like, asked)
            try:
                joint = function(shape, point, inputs, place, directions, said)
            except GivenUp:
                self.given_up = True
                return None
        result, y = joint.aux
        return replace(seen, y=y, matched=joint.matched), result

    def _autocast(self, asked: Asked, device: str) -> torch.dtype | None:
        if asked.again:
            return torch.bfloat16 if self._policy.inner_precision == "bf16-mixed" else None
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def _function(
        self, module: nn.Module, probe: Probe, asked: Asked, low: torch.dtype | None
    ) -> CompiledFunction:
        key = asked.indices, asked.again, low
        if key not in self._functions:
            policy = self._policy
            assert policy.compile is not None
            original: nn.Module = getattr(module, "_orig_mod", module)
            # The hooks of the step's call are around us; the derivative's own has its own.
            call = original if asked.again else original.forward
            names = {index: policy.spec.terms[index].key for index in asked.indices}
            evaluate = _evaluation(call, probe, policy, asked.indices, low)
            self._functions[key] = CompiledFunction(
                evaluate, policy.compile, original, names, nested=policy.compiled
            )
        return self._functions[key]

    def _like(
        self, function: CompiledFunction, shape: Any, call: tuple[Tensor, Inputs, Place]
    ) -> Tensor:
        # A tensor like the value, of which directions are drawn; without numbers.
        if shape not in self._likes:
            with torch.no_grad(), same_random_numbers(call[0].device):
                value = function.eager(*call, {}, {}).value
            self._likes[shape] = value.shape, value.dtype
        size, dtype = self._likes[shape]
        return call[0].new_empty((), dtype=dtype).expand(size)

    def _prepared(
        self, seen: Observation, like: Tensor, asked: Asked
    ) -> tuple[dict[int, Directions], Said]:
        policy, x = self._policy, seen.x.detach()
        terms = {index: policy.spec.terms[index] for index in asked.indices}
        target: Jet | None = None
        if terms and not _is_inside(policy):
            more = {"call": seen.call} if getattr(policy.teacher, "takes", "") == "call" else {}
            target = policy.teacher.at(x, policy.spec.output_map, asked.batch, **more)
        directions: dict[int, Directions] = {}
        for index, term in terms.items():
            cotangents = tangents = None
            if term.needs_cotangents:
                cotangents = asked.draws.cotangents(index, term, like, target)
            if term.needs_tangents:
                tangents = asked.draws.tangents(index, term, x, target)
            directions[index] = cotangents, tangents
        if target is None:
            return directions, None
        student = cast(Jet, SimpleNamespace(value=like))
        said = {i: answer(t, student, target, *directions[i]).detach() for i, t in terms.items()}
        return directions, said


def _is_inside(policy: Policy) -> bool:
    is_network = isinstance(policy.teacher, NetworkTeacher) and policy.teacher.takes == "input"
    return is_network and all(term.projection != FISHER for term in policy.spec.terms)


def _evaluation(
    call: Callable[..., Any], probe: Probe, policy: Policy,
    indices: tuple[int, ...], low: torch.dtype | None,
) -> Callable[..., Joint]:  # fmt: skip
    on, output, skip = probe.on, probe.output, policy.non_finite
    unknown, chosen = policy.teacher.allows_unknown, policy.spec.terms
    teacher = policy.teacher if isinstance(policy.teacher, NetworkTeacher) else None

    def evaluate(
        x: Tensor, inputs: Inputs, place: Place, directions: Mapping[int, Directions], said: Said
    ) -> Joint:
        def student(point: Tensor) -> tuple[Tensor, Any]:
            filled = place.fill(inputs, point)
            dtype, device = low or torch.bfloat16, x.device.type
            with torch.autocast(device, dtype=dtype, enabled=low is not None):
                result = call(*filled["args"], **filled["kwargs"])
            y = with_rows(select_output(result, output), x)
            return mapped(on, y, x), (result, y)

        terms = {index: chosen[index] for index in indices if index in directions}
        targets: Any = said
        if said is None:
            assert teacher is not None or not terms
            targets = {} if teacher is None else teacher.function(on, x.dtype)
        return value_and_matched(
            student, x, terms, directions, targets, allows_unknown=unknown, non_finite=skip
        )

    return evaluate


def _shapes(inputs: Inputs) -> tuple[Any, ...]:
    leaves = tree_leaves(inputs)
    return tuple((leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Choices:
    """What one step goes by, and who compiles its calls, if anybody does."""

    policy: Policy
    draws: Draws
    weights: Mapping[str, float]
    compiler: Compiler | None = None

    def call(self, *, rows: float, again: bool, batch: Any) -> CompiledCall | None:
        """Say how a call on a fraction of the rows is observed; None without a compiler."""
        if self.compiler is None or self.compiler.given_up:
            return None
        terms = enumerate(self.policy.spec.terms)
        indices = tuple(i for i, t in terms if t.rows == rows and self.weights[t.key] != 0.0)
        return partial(self.compiler.observe, asked=Asked(indices, again, self.draws, batch))
