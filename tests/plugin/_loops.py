"""One training by the callback, one that it refuses, and one that is written by hand."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.functional.projections import draw, hash_words
from tests.plugin._students import mlp
from tests.plugin._trainers import fit, points, weights


def taught(student, terms=(), data=None, *others, teacher=None, on="identity", **options):
    terms = [terms] if isinstance(terms, SobolevTerm) else terms or [SobolevTerm()]
    teacher = mlp(seed=7) if teacher is None else teacher
    teacher = NetworkTeacher(teacher) if isinstance(teacher, torch.nn.Module) else teacher
    callback = SobolevCallback(teacher, SobolevSpec(terms=terms, on=on), **options)
    fit(student, points() if data is None else data, callback, *others)
    return weights(student)


def refuses(student, text, /, error=ValueError, **options):
    """Fitting raises before any weight has moved, and leaves no trace."""
    before, trace = weights(student), set(vars(student))
    options = {"teacher": mlp(seed=7), **options}
    with pytest.raises(error, match=text):
        fit(student, points(), SobolevCallback(**options))
    assert_close(weights(student), before, rtol=0, atol=0)
    assert set(vars(student)) - {"_hparams"} == trace  # Lightning's own


class StepDraws:
    """The directions of one step: of seeds that the loop counts itself, and of no other step."""

    def __init__(self, seed, rank, number):
        self.words = (seed, rank, number)

    def cotangents(self, index, term, y):
        return self._directions(term, y, index, 0)

    def tangents(self, index, term, x):
        return self._directions(term, x, index, 1)

    def rows(self, fraction, size):
        generator = self._generator(round(fraction * 1e6), 2)
        return torch.randperm(size, generator=generator)[: max(1, round(fraction * size))].sort()[0]

    def _directions(self, term, like, *words):
        options = {"num_projections": term.num_projections, "generator": self._generator(*words)}
        return draw(term.projection, like.shape, dtype=like.dtype, **options)

    def _generator(self, *words):
        return torch.Generator().manual_seed(hash_words(*self.words, *words))


def by_hand(batches=None, term=None, *, net=None, teacher=None, **options):
    net, teacher = mlp() if net is None else net, mlp(seed=7) if teacher is None else teacher
    batches = points() if batches is None else batches
    train_by_hand(net, teacher, batches, SobolevTerm() if term is None else term, **options)
    return weights(net)


def train_by_hand(net, teacher, batches, term, *, seed=0, lr=0.05, accumulate=1, ranks=1,
                  draws=StepDraws, keep=lambda x: x, first=0):  # fmt: skip
    """Run plain SGD on value loss + term; the law of directions alone comes from the package.

    With several ranks each has its rows of the batch and its own directions; the term is of those
    rows that ``keep`` leaves. ``first`` is the number of the first draws.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    references = []
    for number, (x, target) in enumerate(batches):
        loss = mse_loss(net(x), target)
        parts = [
            _compared(net, teacher, keep(x)[rank::ranks], term, draws(seed, rank, first + number))
            for rank in range(ranks)
        ]
        distance, reference = (torch.stack(values).mean() for values in zip(*parts, strict=True))
        references.append(reference)
        if term.normalize == "target":
            distance = distance / torch.stack(references).mean()
        ((loss + term.weight * distance) / accumulate).backward()
        if (number + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def _compared(net, teacher, x, term, draws):
    x = (x if term.rows == 1.0 else x[draws.rows(term.rows, len(x))]).clone().requires_grad_()
    y = net(x)
    u = draws.cotangents(0, term, y)
    v = draws.tangents(0, term, x)
    theirs = _derivative(term, teacher(x), x, u, v).detach()
    errors = _derivative(term, y, x, u, v) - theirs
    return tuple(d.square().flatten(2).sum(-1).mean() for d in (errors, theirs))


def _derivative(term, y, x, cotangents, tangents):
    pairs = zip(cotangents, tangents, strict=True)
    if term.order == 2:
        return torch.stack([_grad(_grad(y, x, u), x, v) for u, v in pairs])
    if term.side == "cotangent":
        return torch.stack([_grad(y, x, u) for u in cotangents])
    dummy = torch.zeros_like(y).requires_grad_()
    row = _grad(y, x, dummy)
    return torch.stack([_grad(row, dummy, v) for v in tangents])


def _grad(y, x, weight):
    return torch.autograd.grad(y, x, weight, create_graph=True)[0]
