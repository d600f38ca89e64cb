"""The training of all runs of a study at once: a slice sees what a run with the callback would."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import Balanced
from lightning_sobolev.tasks.records import Record
from lightning_sobolev.tasks.stacked.cells import (
    METHODS,
    Cell,
    Points,
    data_of,
    label_nmse,
    stacked,
)
from lightning_sobolev.tasks.stacked.networks import Stack, gradients

LR = 3e-3
_LOOK = 50


def losses(net: Stack, points: Points, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return every run's value loss and its derivative term, unweighted: ``[runs]`` each.

    Args:
        net: The networks.
        points: Of all runs.
        factors: Of the squared errors of the derivatives, ``[runs, 1, 2]``.
    """
    x = points["x"].requires_grad_()
    y = net(x)
    (slopes,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    term = (factors * (slopes - points["dydx"]).square()).sum(2).mean(1)
    return (y - points["y"]).square().mean(1), term


def factors_of(cells: Sequence[Cell], dydx: Tensor) -> Float[Tensor, "runs 1 2"]:
    """Return what each squared error of a derivative is multiplied by: the term's scale.

    Args:
        cells: The runs.
        dydx: Their derivatives, ``[runs, rows, 2]``.
    """
    squares = dydx.square().mean(1, keepdim=True)
    whole = 1.0 / squares.sum(2, keepdim=True).expand_as(squares)
    floor = 1e-4 * squares.mean(2, keepdim=True)
    each = 0.5 / torch.maximum(squares, floor)
    by_element = torch.tensor([METHODS[c.method].normalize == "elements" for c in cells])
    return torch.where(by_element[:, None, None], each, whole)


class Weights:
    """The weight of every run at every step.

    Args:
        cells: The runs.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._terms = [METHODS[cell.method] for cell in cells]
        balanced = [t.weight if isinstance(t.weight, Balanced) else None for t in self._terms]
        self._ratios = torch.tensor([b.ratio if b is not None else 0.0 for b in balanced])
        self._balanced: Tensor | None = None

    def at(self, step: int, value: Tensor, term: Tensor, net: Stack) -> Float[Tensor, " runs"]:
        """Return the weights; measure the balanced ones where they are due.

        Args:
            step: The step.
            value: Value losses, ``[runs]``.
            term: Derivative terms, ``[runs]``.
            net: The networks.
        """
        settings = Balanced()
        if step % settings.every_n_steps == 0:
            norms = [gradients(loss, net).norm(dim=1) for loss in (value, term)]
            found = self._ratios * norms[0] / norms[1]
            old = found if self._balanced is None else self._balanced
            self._balanced = settings.memory * old + (1 - settings.memory) * found
        assert self._balanced is not None
        fixed = torch.tensor([term.weight_at(step) for term in self._terms])
        return torch.where(self._ratios > 0, self._balanced, fixed)


def train(
    cells: Sequence[Cell], known: Points, held_out: Points, steps: int
) -> tuple[Stack, dict[str, Tensor]]:
    """Fit all runs on full batches by Adam, whose rate falls to zero along half a cosine.

    Args:
        cells: The runs.
        known: Their training points.
        held_out: Their validation points.
        steps: Length of the training.

    Returns:
        The networks, and by name what can be seen without the truth, ``[runs]`` each.
    """
    net, weights = Stack([cell.seed for cell in cells]), Weights(cells)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    factors = factors_of(cells, known["dydx"])
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        value, term = losses(net, known, factors)
        if step % _LOOK == 0:
            outside = (net(held_out["x"]) - held_out["y"]).square().mean(1)
            pair = [gradients(loss, net) for loss in (outside, term)]
            seen.append((outside.detach(), torch.cosine_similarity(pair[0], pair[1], dim=1)))
        total = value + weights.at(step, value, term, net) * term
        optimizer.zero_grad()
        total.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        final = (net(held_out["x"]) - held_out["y"]).square().mean(1)
    return net, _signs(final, seen)


def _signs(final: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    errors, cosines = (torch.stack(each) for each in zip(*seen, strict=True))
    half = len(cosines) // 2
    return {
        "validation_mse": final,
        "validation_rise": final / torch.minimum(final, errors.amin(0)),
        "early_cosine": cosines[:half].mean(0),
        "late_cosine": cosines[half:].mean(0),
    }


def study(cells: Sequence[Cell], steps: int) -> list[Record]:
    """Train runs side by side and measure them at the test points.

    Args:
        cells: The runs, all with as many points.
        steps: Length of the training.

    Returns:
        One record a run, with four digits.
    """
    tables = [data_of(cell) for cell in cells]
    known, held_out, truth = (stacked(each) for each in zip(*tables, strict=True))
    net, signs = train(cells, known, held_out, steps)
    x = truth["x"].requires_grad_()
    y = net(x)
    (slopes,) = torch.autograd.grad(y.sum(), x)
    slopes_off = (slopes - truth["dydx"]).square().sum((1, 2))
    measured = {
        "label_nmse": torch.tensor([label_nmse(cell) for cell in cells]),
        "test_value_nmse": (y.detach() - truth["y"]).square().mean(1)
        / truth["y"].var(1, correction=0),
        "test_derivative_nmse": slopes_off / truth["dydx"].square().sum((1, 2)),
        **signs,
    }
    numbers = {name: [float(f"{n:.4g}") for n in each.tolist()] for name, each in measured.items()}
    own = [{name: each[place] for name, each in numbers.items()} for place in range(len(cells))]
    return [{**vars(cell), **row} for cell, row in zip(cells, own, strict=True)]
