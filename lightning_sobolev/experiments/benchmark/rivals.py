"""The same training step, written by hand in the ways that people write it."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lightning_sobolev.experiments.benchmark.workloads import OUTPUT, Workload
from lightning_sobolev.functional.projections import draw

Net = Callable[[Tensor], Tensor]
Step = Callable[[Net, Net, dict[str, Tensor]], Tensor]
"""From student, teacher (output maps applied) and batch to the loss."""


class Student(pl.LightningModule):
    """A student whose step observes one forward and has no loss of its own.

    Args:
        workload: What is trained.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net, self._teacher = workload.networks()[0], [workload.networks()[1]]
        self.on = OUTPUT[workload.on]

    @property
    def teacher(self) -> nn.Module:
        """The teacher; in a list, so that it is no submodule."""
        return self._teacher[0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Evaluate the student; whoever observes it brings the loss."""
        del batch_idx
        self.net(batch["x"])
        return batch["x"].new_zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class ByHand(Student):
    """A student with a step written by hand.

    Args:
        workload: What is trained.
        step: The step.
        only_parameters: Whether the backward pass leaves out what nobody reads.
    """

    def __init__(self, workload: Workload, step: Step, *, only_parameters: bool = False) -> None:
        super().__init__(workload)
        self._step, self._only_parameters = step, only_parameters

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the step; attention takes the kernel that has a second derivative."""
        del batch_idx
        with sdpa_kernel(SDPBackend.MATH):
            return self._step(
                lambda x: self.on(self.net(x)), lambda x: self.on(self.teacher(x)), batch
            )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate in the parameters, and in the input unless told otherwise."""
        if self._only_parameters:
            kwargs["inputs"] = list(self.parameters())
        super().backward(loss, *args, **kwargs)


class Compiled(Student):
    """A student whose whole step, but for the backward pass, is one compiled function.

    Args:
        workload: What is trained.
        step: From student, teacher (output maps applied), batch and directions to the loss.
    """

    def __init__(self, workload: Workload, step: Callable[..., Tensor]) -> None:
        super().__init__(workload)
        net, teacher, on = self.net, self.teacher, self.on

        def whole(batch: dict[str, Tensor], u: Tensor) -> Tensor:
            return step(lambda x: on(net(x)), lambda x: on(teacher(x)), batch, u)

        self._whole = torch.compile(whole, fullgraph=True, dynamic=False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss; directions are drawn outside, where the generator is."""
        del batch_idx
        with sdpa_kernel(SDPBackend.MATH):
            loss: Tensor = self._whole(batch, _directions(batch["y"]))
        return loss


def squared(ours: Float[Tensor, "batch ..."], theirs: Float[Tensor, "batch ..."]) -> Tensor:
    """Return the mean over rows of the squared distance."""
    return (ours - theirs).square().flatten(1).sum(1).mean()


def plain(net: Net, teacher: Net, batch: dict[str, Tensor]) -> Tensor:
    """Fit values that are in the batch."""
    del teacher
    return squared(net(batch["x"]), batch["y"])


def distillation(net: Net, teacher: Net, batch: dict[str, Tensor]) -> Tensor:
    """Fit values that the teacher is asked for."""
    with torch.no_grad():
        theirs = teacher(batch["x"])
    return squared(net(batch["x"]), theirs)


def as_usual(net: Net, teacher: Net, batch: dict[str, Tensor]) -> Tensor:
    """One leaf for both networks, and a backward pass that reaches it."""
    x = batch["x"].detach().requires_grad_()
    y, target = net(x), teacher(x)
    u = _directions(y)
    ours = torch.autograd.grad(y, x, u, create_graph=True)[0]
    theirs = torch.autograd.grad(target, x, u, retain_graph=True)[0]
    return squared(y, target.detach()) + squared(ours, theirs)


def at_best(net: Net, teacher: Net, batch: dict[str, Tensor]) -> Tensor:
    """A leaf for each, and a teacher's graph that is gone before the student begins."""
    point = batch["x"].detach().requires_grad_()
    target = teacher(point)
    u = _directions(target)
    (theirs,) = torch.autograd.grad(target, point, u)
    x = batch["x"].detach().requires_grad_()
    y = net(x)
    (ours,) = torch.autograd.grad(y, x, u, create_graph=True)
    return squared(y, target.detach()) + squared(ours, theirs)


def values_alone(net: Net, teacher: Net, batch: dict[str, Tensor], u: Tensor) -> Tensor:
    """Plain training, for a compiler."""
    del u
    return plain(net, teacher, batch)


def by_vjp(net: Net, teacher: Net, batch: dict[str, Tensor], u: Tensor) -> Tensor:
    """Value and row by torch's transform, which a compiler takes whole."""
    (target, (theirs,)), (y, (ours,)) = (_value_and_row(fn, batch["x"], u) for fn in (teacher, net))
    return squared(y, target) + squared(ours, theirs)


def _value_and_row(fn: Net, x: Tensor, u: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    found: Any = torch.func.vjp(fn, x)
    y, pull = found
    return y, pull(u)


class Checkpointed(nn.Module):
    """Keeps no activations of a network: they are computed once more in the backward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "batch *in"]) -> Float[Tensor, "batch *out"]:
        """Evaluate the network."""
        y: Tensor = checkpoint(self.network, x, use_reentrant=False)
        return y


def over_outputs(net: Net, teacher: Net, batch: dict[str, Tensor]) -> Tensor:
    """The whole Jacobian, one backward pass an output."""
    x = batch["x"].detach().requires_grad_()
    y, target = net(x), teacher(x)

    def jacobian(output: Tensor, keep: bool) -> Tensor:
        columns = output.flatten(1).sum(0)
        rows = [
            torch.autograd.grad(column, x, retain_graph=True, create_graph=keep)[0]
            for column in columns
        ]
        return torch.stack(rows, 1)

    theirs = jacobian(target, keep=False)
    return squared(y, target.detach()) + squared(jacobian(y, keep=True), theirs)


def by_jacrev(net: Net, teacher: Net, batch: dict[str, Tensor]) -> Tensor:
    """The whole Jacobian, by torch's transform of a transform."""

    def single(fn: Net) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            y = fn(x[None])[0]
            return y, y

        return both

    def jacobian(fn: Net) -> tuple[Tensor, Tensor]:
        rows, y = torch.func.vmap(torch.func.jacrev(single(fn), has_aux=True))(batch["x"])
        return y, rows

    with torch.no_grad():
        target, theirs = jacobian(teacher)
    y, ours = jacobian(net)
    return squared(y, target) + squared(ours, theirs)


def _directions(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u = draw("sphere", y.shape, num_projections=1, generator=generator, dtype=y.dtype)
    return u[0].to(y.device)
