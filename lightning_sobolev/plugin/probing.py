"""How a call of the student is observed, and how it is made once more."""

from typing import Any

from torch import Tensor, nn

from lightning_sobolev.draws import Draws
from lightning_sobolev.functional.precision import inner_autocast
from lightning_sobolev.plugin.observation import CompiledCall, Probe
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.precision import in_single
from lightning_sobolev.plugin.protect import batch_norm_aside
from lightning_sobolev.plugin.select import Forward


def make_probe(
    policy: Policy, draws: Draws, batch: Any = None, compiled: CompiledCall | None = None
) -> Probe:
    """Return how the call is observed: where forward mode is all there is, with its tangents."""

    def tangents(x: Tensor) -> Tensor | None:
        index, teacher = policy.pushed, policy.teacher
        if index is None:
            return None
        is_asked = batch is not None and getattr(teacher, "has_directions", False)
        target = teacher.at(x.detach(), policy.spec.output_map, batch) if is_asked else None
        return draws.tangents(index, policy.spec.terms[index], x, target)

    on, precise = policy.spec.output_map, policy.inner_precision == "float32"
    engine = policy.engine if policy.compile is None else "tape"  # should it not compile
    return Probe(policy.wrt, policy.output, on, engine, tangents, precise, compiled)


def make_forward(module: nn.Module, policy: Policy) -> Forward:
    """Return a call of the student for the derivative alone, in at least float32."""
    call = in_single(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # Eval mode is entered anew each time: the func engine may call once more later.
        aside = batch_norm_aside(module, evaluate=policy.batch_norm == "eval")
        with aside, inner_autocast(device, policy.inner_precision):
            return call(*args, **kwargs)

    device = next((p.device.type for p in module.parameters()), "cpu")
    return forward
