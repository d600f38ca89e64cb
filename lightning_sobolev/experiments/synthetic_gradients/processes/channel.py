"""Bounded one-way channels between the processes of neighboring stages, two for every cut."""

import queue
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from torch import Tensor

Packet = tuple[int, list[Tensor]]
_SECONDS_BETWEEN_SIGNS = 0.2


class Channel:
    """A queue of numbered tensors with one writer and one reader, in memory that both share.

    The queue itself carries a number and a place. A place is written again when ``capacity`` + 2
    packets have followed: then the reader has taken the packet after the one that was there, and
    has made its copies before. A process that is killed leaves nothing by half.

    Args:
        context: Of the processes.
        capacity: Packets that may be under way.
    """

    def __init__(self, context: BaseContext, capacity: int) -> None:
        self._queue: Any = context.Queue(capacity)
        self._num_places, self._sent = capacity + 2, 0
        self._places: dict[int, list[Tensor]] = {}

    def send(self, number: int, tensors: list[Tensor], waiting: Callable[[], None]) -> None:
        """Send tensors; wait as long as there is no room.

        Args:
            number: Of the batch.
            tensors: What is copied.
            waiting: Called several times a second while there is no room.
        """
        place = self._sent % self._num_places
        self._sent += 1
        known, fresh = self._places.get(place, []), None
        if [tensor.shape for tensor in known] == [tensor.shape for tensor in tensors]:
            for there, tensor in zip(known, tensors, strict=True):
                there.copy_(tensor)
        else:
            fresh = [tensor.clone().share_memory_() for tensor in tensors]  # type: ignore[no-untyped-call]
            self._places[place] = fresh
        _patiently(
            lambda seconds: self._queue.put((number, place, fresh), timeout=seconds), waiting
        )

    def end(self, waiting: Callable[[], None]) -> None:
        """Say that nothing follows.

        Args:
            waiting: Called several times a second while there is no room.
        """
        _patiently(lambda seconds: self._queue.put(None, timeout=seconds), waiting)

    def receive(self, waiting: Callable[[], None]) -> Packet | None:
        """Wait for a packet.

        Args:
            waiting: Called several times a second while there is none.

        Returns:
            Its number and tensors; None when nothing follows.
        """
        packet = _patiently(lambda seconds: self._queue.get(timeout=seconds), waiting)
        if packet is None:
            return None
        number, place, fresh = packet
        if fresh is not None:
            self._places[place] = fresh
        return number, [tensor.clone() for tensor in self._places[place]]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has arrived."""
        return bool(self._queue.empty())

    def abandon(self) -> None:
        """Let the process end although nobody takes what it has sent."""
        self._queue.cancel_join_thread()


class Cut(NamedTuple):
    """What connects two stages.

    Args:
        up: Activations and classes.
        down: Gradients and losses at those activations.
    """

    up: Channel
    down: Channel


def build_cut(context: BaseContext, capacity: int) -> Cut:
    """Return the channels of a cut.

    Args:
        context: Of the processes.
        capacity: Activations that may be under way. Two answers more have room: the stage below
            takes all that have come before it sends the next activation, so the stage above
            hardly ever waits.
    """
    return Cut(Channel(context, capacity), Channel(context, capacity + 2))


def _patiently(call: Callable[[float], Any], waiting: Callable[[], None]) -> Any:
    while True:
        try:
            return call(_SECONDS_BETWEEN_SIGNS)
        except (queue.Empty, queue.Full):
            waiting()
