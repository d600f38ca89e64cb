"""The gradient of a derivative term, once from a real training step and once by differences.

The reference evaluates the projected derivatives as VALUES by ``torch.autograd.functional`` and
differentiates nothing in the parameters: it cannot share an error with a double backward.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch
from torch.autograd import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_sobolev import AnalyticTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.loss.draws import Draws
from tests.plugin._trainers import fit_one_step

SEED = 5

TERMS = {
    "vjp": SobolevTerm(num_projections=2),
    "jvp": SobolevTerm(side="tangent", num_projections=2),
    "order 2": SobolevTerm(order=2),
}


@dataclass
class Case:
    """An unchanged module, the batch of its step, the callback's options and the rate of its SGD.

    ``observed`` gives one (function, x) for each call that counts; ``plain_loss`` says whether the
    module has a loss of its own beside the term.
    """

    module: L.LightningModule
    batch: Any
    observed: Callable[[L.LightningModule, Any], list[tuple[Callable, torch.Tensor]]]
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1.0
    plain_loss: bool = False


def teacher_value(x, shape):
    """A smooth function of every row, of the given output shape."""
    size = torch.Size(shape[1:]).numel()
    flat = x.flatten(1)
    mixing = torch.linspace(-1.0, 1.0, flat.shape[1] * size, dtype=x.dtype).reshape(-1, size)
    return torch.sin(flat @ mixing.cos() + 0.3).reshape(shape)


def trained_gradient(case, term, engine="tape", **changes):
    """Return by name what one step of SGD subtracted because of the term, and the callback."""
    (_, x), *_ = observed = case.observed(case.module.double(), case.batch)
    shape = observed[0][0](x).shape
    teacher = AnalyticTeacher(lambda point: teacher_value(point, (len(point), *shape[1:])))
    spec = SobolevSpec(terms=[term])
    options = {**case.options, "engine": engine, "seed": SEED, **changes}
    module, plain = copy.deepcopy(case.module), copy.deepcopy(case.module)
    fit_one_step(module, case.batch, SobolevCallback(teacher, spec, **options))
    if case.plain_loss:
        fit_one_step(plain, case.batch)
    before, after = dict(plain.named_parameters()), dict(module.named_parameters())
    return {name: (before[name] - after[name]).detach() / case.lr for name in before}


def term_value(case, term, references):
    """Return the term from derivatives as values; a first call fills in the fixed targets."""
    is_first = not references
    distances = []
    with sdpa_kernel(SDPBackend.MATH):
        for number, (fn, x) in enumerate(case.observed(case.module, case.batch)):
            x = x.detach()
            shape = fn(x).shape
            ours = projected(term, fn, x, number)
            if is_first:
                theirs = projected(term, lambda p, s=shape: teacher_value(p, s), x, number)
                references.append(theirs)
            error = ours - references[number]
            distances.append(error.square().flatten(2).sum(-1).mean())
    scale = torch.stack([r.square().flatten(2).sum(-1).mean() for r in references]).mean()
    return torch.stack(distances).mean() / scale


def projected(term, fn, x, call=0):
    """The projected derivatives of fn at x for the draws of the first step, as values."""
    draws = Draws(SEED, 0, 0, call)
    cotangents = draws.cotangents(0, term, fn(x).detach())
    tangents = draws.tangents(0, term, x)
    if term.order == 2:
        pairs = zip(cotangents, tangents, strict=True)
        return torch.stack(
            [functional.hvp(lambda p, u=u: (u * fn(p)).sum(), x, v)[1] for u, v in pairs]
        )
    if term.side == "cotangent":
        return torch.stack([functional.vjp(fn, x, u)[1] for u in cotangents])
    return torch.stack([functional.jvp(fn, x, v)[1] for v in tangents])


def slopes(scalar, parameters, gradient, step=1e-6):
    """Return (by gradient, by central differences) along one random direction per parameter."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for name, parameter in parameters.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        start = parameter.detach().clone()
        values = []
        for sign in (1.0, -1.0):
            parameter.data.copy_(start + sign * step * direction)
            values.append(scalar())
        parameter.data.copy_(start)
        found = (values[0] - values[1]) / (2 * step)
        # torch's gradient in a complex parameter is the one of this real inner product.
        pairs.append(((gradient[name].conj() * direction).real.sum(), found.detach()))
    return tuple(torch.stack(column) for column in zip(*pairs, strict=True))


def compare(case, term, engine="tape", around=nullcontext, step=1e-6, **changes):
    """Return slopes of the term along one direction per parameter: trained, by differences."""
    gradient = trained_gradient(case, term, engine, **changes)
    references = []
    with around():
        term_value(case, term, references)
        parameters = dict(case.module.named_parameters())
        return slopes(lambda: term_value(case, term, references), parameters, gradient, step)
