r"""A section that works by itself: it moves at once, and learns what it should have said later.

A batch has a number. The section answers an activation with the next one and moves along what the
model above it says; the target of that model, value and derivative at the very same activation,
comes any number of batches later and is matched to it by the number. Targets only ever reach the
model: a section with a model never moves along what came from above.

With targets that come at once this is ``take_step``, cut into pieces.

Source: Jaderberg et al. 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv:1608.05343), section 2; Czarnecki et al. 2017 (arXiv:1706.04859) for what models are taught.
"""

from collections import OrderedDict
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.messages import Message, speak
from lightning_sobolev.experiments.synthetic_gradients.step import arrived_at, teach
from lightning_sobolev.objective import RunningScales


@dataclass(frozen=True, slots=True)
class Activation:
    """What goes up.

    Args:
        number: Of the batch.
        h: Input of the section above; pictures for the lowest.
        y: The classes.
    """

    number: int
    h: Float[Tensor, "batch *in"]
    y: Int[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class Target:
    """What comes down: loss and gradient at an activation that was sent up.

    Args:
        number: Of the batch.
        message: The loss of everything above, as far as the section above knows it.
    """

    number: int
    message: Message


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is trained.

    Args:
        module: Its parameters.
        optimizer: Moves them.
        scheduler: Is told of every step.
    """

    module: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None = None

    def move(self) -> None:
        """Take a step along the gradients that were added, and forget them."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()


class Memory:
    """Recent activations by number; the oldest is forgotten when there is no room.

    Args:
        room: How many are kept.

    Raises:
        ValueError: If there is room for none.
    """

    def __init__(self, room: int) -> None:
        if room < 1:
            raise ValueError(f"room must be at least 1, got {room}")
        self.room = room
        self._kept: OrderedDict[int, Activation] = OrderedDict()

    def keep(self, activation: Activation) -> None:
        """Keep an activation until its target comes."""
        self._kept[activation.number] = activation
        if len(self._kept) > self.room:
            self._kept.popitem(last=False)

    def take(self, number: int) -> Activation | None:
        """Return the activation of that number, once; None when it was forgotten."""
        return self._kept.pop(number, None)


class Worker:
    """One section, the model above it, and what is needed to train both.

    Args:
        section: The section.
        model: The model of the cut above; None for the last section, and where there is none.
        kind: What passes the cuts.
        matching: Weights of what the model is taught.
        is_first: Whether it gets pictures, to which nothing is sent back.
        is_last: Whether it gives logits.
        room: Activations that are kept until their targets come.
    """

    def __init__(
        self,
        section: Part,
        model: Part | None,
        *,
        kind: Kind,
        matching: Matching,
        is_first: bool,
        is_last: bool,
        room: int = 16,
    ) -> None:
        self.section, self.model, self.kind, self.matching = section, model, kind, matching
        self.is_first, self.is_last = is_first, is_last
        self.memory, self.scales = Memory(room), RunningScales()
        self.learned = self.forgotten = self.lateness = 0
        self._given: Activation | None = None
        self._output: Tensor | None = None

    @property
    def moves(self) -> bool:
        """Whether the section is trained at all."""
        return self.is_last or self.kind.message != "nothing"

    @property
    def awaits_gradient(self) -> bool:
        """Whether the section can only move along what comes from above."""
        return self.kind.message == "true" and not self.is_last

    def forward(self, given: Activation) -> Activation:
        """Run the section.

        Args:
            given: Its input.

        Returns:
            The input of the section above, without a graph; the logits of the last one.
        """
        h = given.h if self.is_first else given.h.detach().requires_grad_()
        self._given = Activation(given.number, h, given.y)
        self._output = self.section.module(h)
        sent = Activation(given.number, self._output.detach(), given.y)
        if self.model is not None:
            self.memory.keep(sent)
        return sent

    def move(self, arrived: Message | None = None) -> Target | None:
        """Move the section and say what should have been said below it.

        Args:
            arrived: The true gradient at its output, where it ``awaits_gradient``.

        Returns:
            The target for the section below; None for the first, and where nothing passes.
        """
        assert self._given is not None
        assert self._output is not None
        given, output = self._given, self._output
        value: Tensor | None
        if self.is_last:
            value = cross_entropy(output, given.y, reduction="none")
            value.mean().backward()  # type: ignore[no-untyped-call]
        elif not self.moves:
            return None
        else:
            message = self._said(given.number, output, given.y) if arrived is None else arrived
            output.backward(message.gradient / len(output))  # type: ignore[no-untyped-call]
            value = message.value
        self.section.move()
        if self.is_first or self.kind.message == "nothing":
            return None
        return Target(given.number, arrived_at(given.h, value))

    def _said(self, number: int, output: Tensor, y: Tensor) -> Message:
        if self.model is None:
            raise ValueError(f"without a model there must be a gradient, got none for {number}")
        return speak(self.model.module, self.kind, output, y).detach()

    def learn(self, target: Target) -> bool:
        """Teach the model what it should have said about an activation, however long ago.

        Args:
            target: What came from above.

        Returns:
            Whether the activation was still known.
        """
        assert self.model is not None
        assert self._given is not None
        activation = self.memory.take(target.number)
        if activation is None:
            self.forgotten += 1
            return False
        graph = self.kind.model == "loss" and self.kind.matches_derivative
        said = speak(self.model.module, self.kind, activation.h, activation.y, create_graph=graph)
        teach(self.kind, self.matching, said, target.message, self.scales, Tensor.backward)
        self.model.move()
        self.learned += 1
        self.lateness += self._given.number - target.number
        return True
