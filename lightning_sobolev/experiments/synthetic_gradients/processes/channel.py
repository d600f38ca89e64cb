"""Bounded one-way channels between the processes of neighboring stages, two for every cut."""

import queue
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

from torch import Tensor

Packet = tuple[int, list[Tensor]]
_SECONDS_BETWEEN_SIGNS = 0.2


class Channel:
    """A queue of numbered tensors with one writer and one reader, in memory that both share.

    The queue itself carries a number and a place. A place is written again when ``capacity`` + 2
    packets have followed: then the reader has made its copies of the one that was there. Whoever
    waits for room or for a packet calls ``waiting`` several times a second.
    """

    def __init__(self, context: BaseContext, capacity: int) -> None:
        self.queue: Any = context.Queue(capacity)
        self._num_places, self._sent = capacity + 2, 0
        self._places: dict[int, list[Tensor]] = {}
        self.seconds = 0.0  # of this process, in which it sent and received

    def send(self, number: int, tensors: list[Tensor], waiting: Callable[[], None]) -> None:
        """Send copies of tensors when there is room."""
        started, place = time.perf_counter(), self._sent % self._num_places
        self._sent += 1
        known, fresh = self._places.get(place, []), None
        if [tensor.shape for tensor in known] == [tensor.shape for tensor in tensors]:
            for there, tensor in zip(known, tensors, strict=True):
                there.copy_(tensor)
        else:
            fresh = [tensor.clone().share_memory_() for tensor in tensors]  # type: ignore[no-untyped-call]
            self._places[place] = fresh
        _patiently(self.queue.put, waiting, (number, place, fresh))
        self.seconds += time.perf_counter() - started

    def end(self, waiting: Callable[[], None]) -> None:
        """Say that nothing follows."""
        _patiently(self.queue.put, waiting, None)

    def receive(self, waiting: Callable[[], None]) -> Packet | None:
        """Return the next packet; None when nothing follows."""
        started = time.perf_counter()
        packet = _patiently(self.queue.get, waiting)
        if packet is not None:
            number, place, fresh = packet
            if fresh is not None:
                self._places[place] = fresh
            packet = number, [tensor.clone() for tensor in self._places[place]]
        self.seconds += time.perf_counter() - started
        return packet  # type: ignore[no-any-return]


class Cut:
    """What connects two stages: activations and classes go up, losses and gradients down.

    Two answers more than activations have room, so that the stage above hardly ever waits.
    """

    def __init__(self, context: BaseContext, capacity: int) -> None:
        self.up, self.down = Channel(context, capacity), Channel(context, capacity + 2)


def _patiently(call: Callable[..., Any], waiting: Callable[[], None], *given: Any) -> Any:
    while True:
        try:
            return call(*given, timeout=_SECONDS_BETWEEN_SIGNS)
        except (queue.Empty, queue.Full):
            waiting()
