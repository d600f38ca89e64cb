"""What a section says to its neighbors, and hears from them, as packets."""

from collections.abc import Iterator, Sequence

import torch

from lightning_sobolev.experiments.synthetic_gradients.messages import Message
from lightning_sobolev.experiments.synthetic_gradients.processes.links import Incoming, Outgoing
from lightning_sobolev.experiments.synthetic_gradients.processes.pipeline import Pipeline
from lightning_sobolev.experiments.synthetic_gradients.processes.worker import (
    Activation,
    Target,
    Worker,
)

_UP, _DOWN = 0, 1
_NO_LABELS = torch.empty(0, dtype=torch.int64)


class Neighbors:
    """The links of one section.

    Args:
        section: Its number.
        worker: The section; says which links there are.
        shapes: Shape of one row of the activation at every cut.
        pipeline: Rows of a batch, room and timeout.
        dtype: Type of activations and gradients.
    """

    def __init__(
        self,
        section: int,
        worker: Worker,
        shapes: Sequence[tuple[int, ...]],
        pipeline: Pipeline,
        dtype: torch.dtype,
    ) -> None:
        self._batch = pipeline.batch_size
        self._above, self._below = None, None
        self._heard_above, self._heard_below = None, None
        room, timeout = pipeline.room, pipeline.timeout
        passes_down = worker.kind.message != "nothing"
        if not worker.is_last:
            self._shape_above = shapes[section]
            self._above = Outgoing(section + 1, _UP, room=room, timeout=timeout)
            if passes_down:
                # every target is taken at once: the section above never waits for room
                self._heard_above = Incoming(
                    section + 1,
                    _DOWN,
                    num_labels=0,
                    shape=(self._batch, 1 + torch.Size(self._shape_above).numel()),
                    dtype=dtype,
                )
        if not worker.is_first:
            self._heard_below = Incoming(
                section - 1,
                _UP,
                num_labels=self._batch,
                shape=(self._batch, *shapes[section - 1]),
                dtype=dtype,
                room=room,
            )
            if passes_down:
                self._below = Outgoing(section - 1, _DOWN, room=room, timeout=timeout)

    @property
    def waited(self) -> float:
        """Seconds for which the section has waited for others."""
        links = (self._above, self._heard_above, self._below, self._heard_below)
        return sum(link.waited for link in links if link is not None)

    def activations(self) -> Iterator[Activation]:
        """Yield what comes from below until nothing follows; waits for it."""
        assert self._heard_below is not None
        while (packet := self._heard_below.receive(wait=True)) is not None:
            number, y, h = packet
            yield Activation(number, h, y)

    def send_up(self, activation: Activation) -> None:
        """Send an activation to the section above, if there is one; waits for room alone."""
        if self._above is not None:
            if len(activation.y) != self._batch:
                raise ValueError(
                    f"every batch must have {self._batch} rows, got {len(activation.y)} in batch "
                    f"{activation.number}"
                )
            self._above.send(activation.number, activation.y, activation.h)

    def send_down(self, target: Target) -> None:
        """Send a target to the section below."""
        assert self._below is not None
        message = target.message
        value = message.value
        if value is None:
            value = message.gradient.new_full((self._batch,), torch.nan)
        packed = torch.cat([value.detach()[:, None], message.gradient.flatten(1)], dim=1)
        self._below.send(target.number, _NO_LABELS, packed)

    def target(self, number: int) -> Target:
        """Wait for the target of a batch."""
        while (found := self._next_target(wait=True)) is not None:
            if found.number == number:
                return found
        raise ConnectionError(f"the section above must answer batch {number}, got its end")

    def late_targets(self) -> Iterator[Target]:
        """Yield the targets that have come; never waits."""
        while (found := self._next_target(wait=False)) is not None:
            yield found

    def _next_target(self, *, wait: bool) -> Target | None:
        assert self._heard_above is not None
        packet = self._heard_above.receive(wait=wait)
        if packet is None:
            return None
        number, _, packed = packet
        gradient = packed[:, 1:].reshape(self._batch, *self._shape_above)
        return Target(number, Message(gradient, packed[:, 0]))

    def close(self) -> None:
        """Say that nothing follows, and wait until others have taken what was sent."""
        for link in (self._above, self._below):
            if link is not None:
                link.close()
