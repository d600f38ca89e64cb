r"""A stage that works by itself: it moves at once, and learns later what it should have predicted.

A batch has a number. The stage answers an activation with the next one and moves along what its
model predicts; the target of that prediction, loss and gradient at the very same activation, comes
any number of batches later and is matched to it by the number. Targets only ever reach the model:
a section with a model never moves along what came from above.

With targets that come at once this is ``take_step``, cut into pieces.

Source: Jaderberg et al. 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv:1608.05343), section 2; Czarnecki et al. 2017 (arXiv:1706.04859) for what models are taught.
"""

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.synthetic_gradients.prediction import LossGradient
from lightning_sobolev.experiments.synthetic_gradients.processes.settings import (
    Optimizers,
    Pipeline,
    StageReport,
)
from lightning_sobolev.experiments.synthetic_gradients.step import Stage

Batches = Iterable[Mapping[str, Tensor]]
Packet = tuple[int, Tensor, Tensor | None]
DONE, BEATS, WAITS = range(3)  # steps; what moves while it waits; whether it is at a queue
_SECONDS_BETWEEN_SIGNS = 0.2


class Channel:
    """The two queues of a cut: activations and classes up, losses and gradients down.

    The queue upwards is bounded; the other one never holds more than two packets beyond that, since
    the stage below takes all that has come before it sends the next activation.

    Args:
        context: Of the processes.
        capacity: Packets that the queue upwards holds.
    """

    def __init__(self, context: BaseContext, capacity: int) -> None:
        self.up: queue.Queue[Any] = context.Queue(capacity)  # type: ignore[assignment]
        self.down: queue.Queue[Any] = context.Queue()  # type: ignore[assignment]

    def abandon(self) -> None:
        """Let the process end although nobody takes what it has sent."""
        for one in (self.up, self.down):
            one.cancel_join_thread()  # type: ignore[attr-defined]


class StageProcess:
    """One stage at work.

    Args:
        stage: The section and its model.
        optimizers: Build what trains them.
        pipeline: How stages work beside each other.
        below: The channel to the stage below, if there is one.
        above: The channel to the stage above, if there is one.
        signs: ``DONE``, ``BEATS`` and ``WAITS``, for whoever watches from another process.
    """

    def __init__(
        self,
        stage: Stage,
        optimizers: Optimizers,
        pipeline: Pipeline,
        below: Channel | None,
        above: Channel | None,
        signs: Int[Tensor, "3"],
    ) -> None:
        self.stage, self.pipeline, self.signs = stage, pipeline, signs
        self.below, self.above = below, above
        self._move_section = _mover(stage.section, optimizers.section, optimizers.scheduler)
        if stage.model is not None:
            self._move_model = _mover(stage.model, optimizers.model, optimizers.scheduler)
        self._buffer: dict[int, tuple[Tensor, Tensor]] = {}
        self._waited = 0.0
        self._learned = self._forgotten = self._lateness = 0

    def run(self, batches: Batches) -> StageReport:
        """Take all batches, from the data or from below.

        Args:
            batches: The data, for the lowest stage.

        Returns:
            What happened.
        """
        self.signs.zero_()
        started = ended = time.perf_counter()
        waited = 0.0
        for number, x, y in self._numbered(batches) if self.below is None else self._from_below():
            self._step(number, x, y)
            self.signs[DONE] += 1
            ended, waited = time.perf_counter(), self._waited
        self._finish()
        return StageReport(
            seconds=ended - started,
            waited=waited,
            learned=self._learned,
            forgotten=self._forgotten,
            lateness=self._lateness / max(self._learned, 1),
        )

    def _numbered(self, batches: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        def forever() -> Iterator[Mapping[str, Tensor]]:
            while True:
                batch = None
                for batch in batches:
                    yield batch
                if batch is None:
                    raise ValueError("batches must give at least one batch, got none")

        for number, batch in enumerate(islice(forever(), self.pipeline.steps)):
            yield number, batch["x"], batch["y"]

    def _from_below(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        assert self.below is not None
        while (packet := self._receive(self.below.up)) is not None:
            number, x, y = packet
            assert y is not None
            yield number, x, y

    def _step(self, number: int, x: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]) -> None:
        time.sleep(self.pipeline.delay)
        h = self.stage.forward(x)
        if self.above is not None:
            self._send(self.above.up, number, h, y)
        if self.stage.is_trained:
            at_output = self._at_output(number, h, y)
            time.sleep(self.pipeline.delay)
            at_input = self.stage.backward(at_output, y)
            self._move_section()
            if self.below is not None and self.stage.kind.gradient != "none":
                assert at_input is not None
                self._send(self.below.down, number, at_input.gradient, at_input.value)
        if self.stage.model is not None:
            self._keep(number, h, y)
            self._learn(number)

    def _at_output(self, number: int, h: Tensor, y: Tensor) -> LossGradient | None:
        if self.above is None:
            return None
        if self.stage.model is not None:
            return self.stage.predict(h, y, create_graph=False)
        packet = self._receive(self.above.down)
        assert packet is not None
        assert packet[0] == number
        return LossGradient(*packet[1:])

    def _keep(self, number: int, h: Tensor, y: Tensor) -> None:
        self._buffer[number] = (h, y)
        if len(self._buffer) > self.pipeline.buffer:
            del self._buffer[min(self._buffer)]

    def _learn(self, number: int) -> None:
        """Teach the model all targets that have come; in lockstep, wait for this batch's."""
        assert self.above is not None
        packet = self._receive(self.above.down, wait=self.pipeline.lockstep)
        while packet is not None:
            self._teach(packet, number)
            packet = self._receive(self.above.down, wait=False)

    def _teach(self, packet: Packet, number: int) -> None:
        kept = self._buffer.pop(packet[0], None)
        if kept is None:
            self._forgotten += 1
            return
        predicted = self.stage.predict(*kept, create_graph=True)
        self.stage.teach(predicted, LossGradient(*packet[1:]))
        self._move_model()
        self._learned += 1
        self._lateness += number - packet[0]

    def _finish(self) -> None:
        """Say that nothing follows, and take what still comes, or nobody could leave."""
        if self.above is not None:
            self._patiently(self.above.up.put, None)
        if self.below is not None:
            self.below.down.put(None)
        if self.above is not None:
            while self._receive(self.above.down) is not None:
                pass

    def _send(self, to: "queue.Queue[Any]", number: int, *tensors: Tensor | None) -> None:
        # as arrays, through a pipe: shared tensors take an open file each
        arrays = (None if tensor is None else tensor.numpy() for tensor in tensors)
        self._patiently(to.put, (number, *arrays))

    def _receive(self, of: "queue.Queue[Any]", *, wait: bool = True) -> Packet | None:
        """Return the next packet; None when nothing follows, or nothing is there yet."""
        try:
            packet = self._patiently(of.get, wait=wait)
        except queue.Empty:
            return None
        if packet is None:
            return None
        number, first, second = packet
        return number, torch.from_numpy(first), None if second is None else torch.from_numpy(second)

    def _patiently(self, call: Callable[..., Any], *packet: Any, wait: bool = True) -> Any:
        """Use a queue for as long as it takes, give a sign now and then, and count the seconds."""
        started = time.perf_counter()
        self.signs[WAITS] = 1
        try:
            while True:
                try:
                    return call(*packet, timeout=_SECONDS_BETWEEN_SIGNS if wait else 0)
                except (queue.Empty, queue.Full):
                    self.signs[BEATS] += 1
                    if not wait:
                        raise
        finally:
            self.signs[WAITS] = 0
            self._waited += time.perf_counter() - started


def _mover(
    module: nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None
) -> Callable[[], None]:
    built = optimizer(module.parameters())
    schedule = None if scheduler is None else scheduler(built)

    def move() -> None:
        built.step()
        built.zero_grad()
        if schedule is not None:
            schedule.step()

    return move
