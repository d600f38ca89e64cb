r"""How far one draw of directions is from all of them, and what it costs to come closer.

For the gradient g of the derivative term in the student's parameters, over draws of directions,

.. math:: v = \mathbb{E}\,|g - \bar g|^2 / |\bar g|^2 .

Averaging n draws divides v by n and takes n times as long: :math:`v \cdot t` compares estimators.
"""

import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sobolev.draws import Draws
from lightning_sobolev.functional.derivatives import FuncJet, tape_jet
from lightning_sobolev.objective import RunningScales, match, reduced
from lightning_sobolev.spec import OUTPUT_MAPS, SobolevTerm
from lightning_sobolev.tasks.benchmark.workloads import Workload
from lightning_sobolev.teachers import NetworkTeacher

Row = dict[str, Any]


def terms_of(num_outputs: int) -> dict[str, SobolevTerm]:
    """Return the estimators that are compared, from one direction to all.

    Args:
        num_outputs: Outputs of the network.
    """
    counts = sorted({1, 2, num_outputs // 2, num_outputs} - {0})
    # A running scale would be a random factor of its own.
    term = partial(SobolevTerm, normalize="none")
    found = {f"{n} of the sphere": term(num_projections=n) for n in counts}
    found |= {f"{n} of the basis": term(projection="basis", num_projections=n) for n in counts[:-1]}
    found["all of the basis"] = term(projection="basis", num_projections=None)
    return {**found, "1 tangent": term(side="tangent", projection="rademacher")}


def measure_scatter(workload: Workload, terms: dict[str, SobolevTerm], draws: int) -> list[Row]:
    """Measure spread and time of the derivative term's gradient for several estimators in turn.

    Args:
        workload: Network and batch.
        terms: The estimators by name.
        draws: Gradients of each.

    Returns:
        For each, ``variance`` relative to the squared mean gradient, and ``seconds`` of one.
    """
    student, teacher = workload.networks()
    x = workload.batch()["x"]
    gradients: dict[str, list[Tensor]] = {name: [] for name in terms}
    seconds: dict[str, list[float]] = {name: [] for name in terms}
    for counter in range(draws):
        for name, term in terms.items():
            started = time.process_time()
            gradients[name].append(_gradient(workload, student, teacher, x, term, counter))
            seconds[name].append(time.process_time() - started)
    return [
        {"estimator": n, "variance": _variance(gradients[n]), "seconds": median(seconds[n])}
        for n in terms
    ]


def _variance(gradients: Sequence[Tensor]) -> float:
    stacked = torch.stack(list(gradients))
    mean = stacked.mean(0)
    spread = (stacked - mean).square().sum(1).sum() / (len(stacked) - 1)
    return float(spread / mean.square().sum())


def _gradient(
    workload: Workload,
    student: nn.Module,
    teacher: nn.Module,
    x: Tensor,
    term: SobolevTerm,
    counter: int,
) -> Tensor:
    on = OUTPUT_MAPS[workload.on]
    draws, target = Draws(0, 0, counter), NetworkTeacher(teacher).at(x, on)
    u = v = None
    if term.needs_tangents:
        v = draws.tangents(0, term, x)
        jet: Any = FuncJet(lambda point: on(student(point)), x, tangents=v)
    else:
        jet = tape_jet(lambda point: on(student(point)), x, create_graph=True)
        u = draws.cotangents(0, term, jet.value)
    matched = match(term, jet, target, cotangents=u, tangents=v)
    loss = reduced(term, matched, RunningScales())
    found = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None])
