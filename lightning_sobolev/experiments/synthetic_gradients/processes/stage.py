r"""A stage that works by itself: it moves at once, and learns later what it should have predicted.

A batch has a number. The stage answers an activation with the next one and moves along what its
model predicts; the target of that prediction, loss and gradient at the very same activation, comes
any number of batches later and is matched to it by the number. Targets only ever reach the model:
a section with a model never moves along what came from above.

With targets that come at once this is ``take_step``, cut into pieces.

Source: Jaderberg et al. 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv:1608.05343), section 2; Czarnecki et al. 2017 (arXiv:1706.04859) for what models are taught.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.common.tables import check_counts
from lightning_sobolev.experiments.synthetic_gradients.matching import LossGradient
from lightning_sobolev.experiments.synthetic_gradients.processes.channel import Channel, Cut, Packet
from lightning_sobolev.experiments.synthetic_gradients.step import Stage

Batches = Iterable[Mapping[str, Tensor]]
DONE, BEATS = range(2)  # steps, and a count that moves while the stage waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How stages work beside each other, and what trains them.

    Args:
        steps: Batches.
        optimizer: Builds the optimizer of a section.
        model_optimizer: Builds that of a model; the same as of the sections when None.
        scheduler: Builds the schedule of each of them.
        capacity: Activations that may wait at a cut before the stage below waits for room.
        buffer: Activations that a stage keeps until their targets come.
        lockstep: Whether a stage waits for the target of a batch before it takes the next one:
            then it is the one-process training, at its speed.
        delay: Seconds that every forward and every backward pass of a section takes longer, to see
            what stages gain that have a device of their own.
        timeout: Seconds without a sign after which a stage counts as lost.
    """

    steps: int
    optimizer: OptimizerFactory
    model_optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    capacity: int = 4
    buffer: int = 16
    lockstep: bool = False
    delay: float = 0.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        check_counts(1, steps=self.steps, capacity=self.capacity, buffer=self.buffer)
        require(self.delay >= 0, "delay", ">= 0", self.delay)
        require(self.timeout > 0, "timeout", "> 0", self.timeout)


@dataclass(slots=True, kw_only=True)
class StageReport:
    """What a stage did.

    Args:
        seconds: From the first batch to the last step, of its own.
        waited: Seconds of these in which it waited for another stage.
        learned: Targets that its model was taught.
        forgotten: Targets that came when their activation was no longer kept.
        late: Batches that had gone up between activations and their targets, all together.
    """

    seconds: float = 0.0
    waited: float = 0.0
    learned: int = 0
    forgotten: int = 0
    late: int = 0


class StageProcess:
    """One stage at work.

    Args:
        stage: The section and its model.
        pipeline: How stages work beside each other.
        below: What connects it to the stage below, if there is one.
        above: What connects it to the stage above, if there is one.
        signs: ``DONE`` and ``BEATS``, for whoever watches from another process.
    """

    def __init__(
        self,
        stage: Stage,
        pipeline: Pipeline,
        below: Cut | None,
        above: Cut | None,
        signs: Int[Tensor, "2"],
    ) -> None:
        self.stage, self.pipeline, self.signs = stage, pipeline, signs
        self.below, self.above, self.report = below, above, StageReport()
        self._move_section = _mover(stage.section, pipeline.optimizer, pipeline.scheduler)
        if stage.model is not None:
            factory = pipeline.model_optimizer or pipeline.optimizer
            self._move_model = _mover(stage.model, factory, pipeline.scheduler)
        self._buffer: dict[int, tuple[Tensor, Tensor]] = {}
        self._waited = 0.0

    def run(self, batches: Batches) -> StageReport:
        """Take all batches, from the data or from below, and say what happened."""
        self.signs.zero_()
        started = time.perf_counter()
        for number, x, y in self._numbered(batches) if self.below is None else self._from_below():
            self.step(number, x, y)
            self.signs[DONE] += 1
            self.report.seconds = time.perf_counter() - started
            self.report.waited = self._waited
        # Nothing follows; what still comes is taken, or nobody could leave.
        if self.above is not None:
            self.above.up.end(self._beat)
        if self.below is not None:
            self.below.down.end(self._beat)
        while self.above is not None and self._receive(self.above.down) is not None:
            pass
        return self.report

    def _numbered(self, batches: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        number = 0
        while (first := number) < self.pipeline.steps:
            for batch in islice(batches, self.pipeline.steps - first):
                yield number, batch["x"], batch["y"]
                number += 1
            require(number > first, "batches", "at least one", "none")

    def _from_below(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        assert self.below is not None
        while (packet := self._receive(self.below.up)) is not None:
            number, (x, y) = packet
            yield number, x, y

    def step(self, number: int, x: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]) -> None:
        """Take a batch: send its activation, move, and teach the model what has come."""
        time.sleep(self.pipeline.delay)
        h = self.stage.forward(x)
        if self.above is not None:

            def wait_for_room() -> None:
                self._beat()
                self._learn(number, wait=False)  # the stage above may wait for room for targets

            self._send(self.above.up, number, [h, y], wait_for_room)
        if self.stage.is_trained:
            at_output = self._at_output(h, y)
            time.sleep(self.pipeline.delay)
            at_input = self.stage.backward(at_output, y)
            self._move_section()
            if self.below is not None and self.stage.kind.gradient != "none":
                assert at_input is not None
                parts = [part for part in (at_input.gradient, at_input.value) if part is not None]
                self._send(self.below.down, number, parts, self._beat)
        if self.stage.model is not None:
            self._buffer[number] = (h, y)
            if len(self._buffer) > self.pipeline.buffer:
                del self._buffer[min(self._buffer)]
            self._learn(number, wait=self.pipeline.lockstep)

    def _at_output(self, h: Tensor, y: Tensor) -> LossGradient | None:
        if self.above is None:
            return None
        if self.stage.model is not None:
            return self.stage.predict(h, y, create_graph=False)
        packet = self._receive(self.above.down)
        assert packet is not None
        return LossGradient(*packet[1])

    def _learn(self, number: int, *, wait: bool) -> None:
        """Teach the model all targets that have come, after waiting for one or not."""
        if self.stage.model is None or self.above is None:
            return
        while wait or not self.above.down.queue.empty():
            packet = self._receive(self.above.down)
            assert packet is not None
            wait = False
            kept = self._buffer.pop(packet[0], None)
            if kept is None:
                self.report.forgotten += 1
                continue
            predicted = self.stage.predict(*kept, create_graph=True)
            self.stage.teach(predicted, LossGradient(*packet[1]))
            self._move_model()
            self.report.learned += 1
            self.report.late += number - packet[0]

    def _send(
        self, to: Channel, number: int, tensors: list[Tensor], waiting: Callable[[], None]
    ) -> None:
        started = time.perf_counter()
        to.send(number, tensors, waiting)
        self._waited += time.perf_counter() - started

    def _receive(self, of: Channel) -> Packet | None:
        started = time.perf_counter()
        packet = of.receive(self._beat)
        self._waited += time.perf_counter() - started
        return packet

    def _beat(self) -> None:
        self.signs[BEATS] += 1


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
