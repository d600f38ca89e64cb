"""One-way links between the processes of neighboring sections.

Every section lives in a process of one group (gloo: between processors). What is sent waits in a
bounded queue; only a full one makes the sender wait, for room and never for an answer. A thread
takes what arrives, so that a section can look whether something has come without waiting.

A neighbor that dies closes its connection, and one that hangs says nothing for ``timeout`` seconds:
both end as a ``ConnectionError`` that names it.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_END = -1


class Outgoing:
    """Sends numbered packets to another section without waiting for it.

    Args:
        peer: Number of the section.
        tag: Tells links between the same two sections apart.
        room: Packets that may be under way; a further one waits.
        timeout: Seconds after which a section that takes nothing counts as lost.
    """

    def __init__(self, peer: int, tag: int, *, room: int, timeout: float) -> None:
        self.peer, self.waited = peer, 0.0
        self._tag, self._room, self._timeout = 2 * tag, room, timedelta(seconds=timeout)
        self._under_way: deque[tuple[dist.Work, ...]] = deque()

    def send(self, number: int, labels: Tensor, numbers: Tensor) -> None:
        """Send whole numbers and other numbers.

        Args:
            number: Of the batch.
            labels: Whole numbers.
            numbers: The rest.
        """
        self._like = (labels, numbers)
        header = torch.cat([torch.tensor([number]), labels])
        self._make_room(self._room - 1)
        works = [
            dist.isend(header, self.peer, tag=self._tag),
            dist.isend(numbers.contiguous(), self.peer, tag=self._tag + 1),
        ]
        self._under_way.append(tuple(work for work in works if work is not None))

    def close(self) -> None:
        """Say that nothing follows, in a packet like the last, and wait until all were taken."""
        self.send(_END, *self._like)
        self._make_room(0)

    def _make_room(self, most: int) -> None:
        started = time.perf_counter()
        try:
            while len(self._under_way) > most:
                for work in self._under_way.popleft():
                    work.wait(self._timeout)
        except RuntimeError as error:
            raise ConnectionError(_lost(self.peer, error)) from error
        self.waited += time.perf_counter() - started


class Incoming:
    """Takes numbered packets from another section.

    Args:
        peer: Number of the section.
        tag: Tells links between the same two sections apart.
        num_labels: Whole numbers of a packet.
        shape: Shape of the rest.
        dtype: Its type.
        room: Packets that are taken before they are asked for; 0 for as many as come.
    """

    def __init__(
        self,
        peer: int,
        tag: int,
        *,
        num_labels: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        room: int = 0,
    ) -> None:
        self.peer, self.waited, self.ended = peer, 0.0, False
        self._tag, self._num_labels, self._shape, self._dtype = 2 * tag, num_labels, shape, dtype
        self._arrived: queue.Queue[tuple[int, Tensor, Tensor] | Exception] = queue.Queue(room)
        threading.Thread(target=self._take_all, daemon=True).start()

    def _take_all(self) -> None:
        number = 0
        while number != _END:
            header = torch.empty(1 + self._num_labels, dtype=torch.int64)
            numbers = torch.empty(*self._shape, dtype=self._dtype)
            try:
                dist.recv(header, self.peer, tag=self._tag)
                dist.recv(numbers, self.peer, tag=self._tag + 1)
            except RuntimeError as error:
                self._arrived.put(error)
                return
            number = int(header[0])
            self._arrived.put((number, header[1:], numbers))

    def receive(self, *, wait: bool) -> tuple[int, Tensor, Tensor] | None:
        """Return the next packet: number, whole numbers, the rest.

        Args:
            wait: Whether to wait for one; else None when nothing has come.

        Returns:
            The packet; None, after having waited, when nothing will follow.

        Raises:
            ConnectionError: If the other section is gone.
        """
        if self.ended:
            return None
        started = time.perf_counter()
        try:
            packet = self._arrived.get(block=wait)
        except queue.Empty:
            return None
        self.waited += time.perf_counter() - started
        if isinstance(packet, Exception):
            raise ConnectionError(_lost(self.peer, packet)) from packet
        self.ended = packet[0] == _END
        return None if self.ended else packet


def _lost(peer: int, error: Exception) -> str:
    return f"section {peer} must answer, got no sign of it any more: {error}"
