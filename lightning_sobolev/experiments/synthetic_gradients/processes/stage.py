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
from functools import partial
from itertools import islice

from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.synthetic_gradients.prediction import LossGradient
from lightning_sobolev.experiments.synthetic_gradients.processes.channel import (
    Channel,
    Cut,
    Packet,
)
from lightning_sobolev.experiments.synthetic_gradients.processes.settings import (
    Optimizers,
    Pipeline,
    StageReport,
)
from lightning_sobolev.experiments.synthetic_gradients.step import Stage

Batches = Iterable[Mapping[str, Tensor]]
DONE, BEATS = range(2)  # steps, and a count that moves while the stage waits


class StageProcess:
    """One stage at work.

    Args:
        stage: The section and its model.
        optimizers: Build what trains them.
        pipeline: How stages work beside each other.
        below: What connects it to the stage below, if there is one.
        above: What connects it to the stage above, if there is one.
        signs: ``DONE`` and ``BEATS``, for whoever watches from another process.
    """

    def __init__(
        self,
        stage: Stage,
        optimizers: Optimizers,
        pipeline: Pipeline,
        below: Cut | None,
        above: Cut | None,
        signs: Int[Tensor, "2"],
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
            number, (x, y) = packet
            yield number, x, y

    def _step(self, number: int, x: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]) -> None:
        time.sleep(self.pipeline.delay)
        h = self.stage.forward(x)
        if self.above is not None:
            self._send(self.above.up, number, h, y, waiting=partial(self._wait_for_room, number))
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
        self._learn(number, wait=self.pipeline.lockstep)

    def _at_output(self, number: int, h: Tensor, y: Tensor) -> LossGradient | None:
        if self.above is None:
            return None
        if self.stage.model is not None:
            return self.stage.predict(h, y, create_graph=False)
        packet = self._receive(self.above.down)
        assert packet is not None
        assert packet[0] == number
        return LossGradient(*packet[1])

    def _keep(self, number: int, h: Tensor, y: Tensor) -> None:
        self._buffer[number] = (h, y)
        if len(self._buffer) > self.pipeline.buffer:
            del self._buffer[min(self._buffer)]

    def _learn(self, number: int, *, wait: bool) -> None:
        """Teach the model all targets that have come, after waiting for one or not."""
        if self.stage.model is None or self.above is None:
            return
        while wait or not self.above.down.is_empty:
            packet = self._receive(self.above.down)
            assert packet is not None
            self._teach(packet, number)
            wait = False

    def _teach(self, packet: Packet, number: int) -> None:
        kept = self._buffer.pop(packet[0], None)
        if kept is None:
            self._forgotten += 1
            return
        predicted = self.stage.predict(*kept, create_graph=True)
        self.stage.teach(predicted, LossGradient(*packet[1]))
        self._move_model()
        self._learned += 1
        self._lateness += number - packet[0]

    def _finish(self) -> None:
        """Say that nothing follows, and take what still comes, or nobody could leave."""
        if self.above is not None:
            self.above.up.end(self._beat)
        if self.below is not None:
            self.below.down.end(self._beat)
        if self.above is not None:
            while self._receive(self.above.down) is not None:
                pass

    def _send(
        self,
        to: Channel,
        number: int,
        *tensors: Tensor | None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        known = [tensor for tensor in tensors if tensor is not None]
        to.send(number, known, self._beat if waiting is None else waiting)
        self._waited += time.perf_counter() - started

    def _wait_for_room(self, number: int) -> None:
        """Take targets meanwhile: the stage above may wait for room for them."""
        self._beat()
        self._learn(number, wait=False)

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
