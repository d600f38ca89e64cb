r"""A stage that works by itself: it moves at once, and learns later what it should have predicted.

A batch has a number. The stage answers an activation with the next one and moves along what its
model predicts; the target of that prediction, loss and gradient at the very same activation, comes
any number of batches later and is matched to it by the number. Targets only ever reach the model.
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
from lightning_sobolev.experiments.synthetic_gradients.processes.channel import Cut
from lightning_sobolev.experiments.synthetic_gradients.step import Stage

Batches = Iterable[Mapping[str, Tensor]]
DONE, BEATS = range(2)  # steps, and a count that moves while the stage waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How stages work beside each other, and what trains them.

    In ``lockstep`` they are the one-process training, at its speed; a ``delay`` shows what stages
    gain that have a device of their own.
    """

    steps: int
    optimizer: OptimizerFactory  # of a section
    model_optimizer: OptimizerFactory | None = None  # the same when None
    model_updates: int = 2  # of a model by every target that comes; no message is sent for them
    scheduler: SchedulerFactory | None = None  # of each of them
    capacity: int = 4  # activations that may wait at a cut before the stage below waits for room
    buffer: int = 16  # activations that a stage keeps until their targets come
    lockstep: bool = False  # whether the target of a batch comes before the next batch is taken
    delay: float = 0.0  # seconds that every forward and backward pass of a section takes longer
    timeout: float = 60.0  # seconds without a sign after which a stage counts as lost

    def __post_init__(self) -> None:
        counts = ("steps", "model_updates", "capacity", "buffer")
        check_counts(1, **{name: getattr(self, name) for name in counts})
        require(self.delay >= 0, "delay", ">= 0", self.delay)
        require(self.timeout > 0, "timeout", "> 0", self.timeout)


@dataclass(slots=True, kw_only=True)
class StageReport:
    """What a stage did."""

    seconds: float = 0.0  # from its first batch to its last step
    waited: float = 0.0  # seconds of these for another stage
    learned: int = 0  # targets that its model was taught
    forgotten: int = 0  # targets that came when their activation was no longer kept
    late: int = 0  # batches that went up between activations and their targets, all together


class StageProcess:
    """One stage at work between two cuts, if it has them; who watches it reads ``signs``."""

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

    def run(self, batches: Batches) -> StageReport:
        """Take all batches, from the data or from below, and say what happened."""
        self.signs.zero_()
        started = time.perf_counter()
        cuts = [cut for cut in (self.below, self.above) if cut is not None]
        for number, x, y in self._numbered(batches):
            self.step(number, x, y)
            self.signs[DONE] += 1
            self.report.seconds = time.perf_counter() - started
            self.report.waited = sum(cut.up.seconds + cut.down.seconds for cut in cuts)
        # Nothing follows; what still comes is taken, or nobody could leave.
        if self.above is not None:
            self.above.up.end(self._beat)
        if self.below is not None:
            self.below.down.end(self._beat)
        while self.above is not None and self.above.down.receive(self._beat) is not None:
            pass
        return self.report

    def _numbered(self, batches: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        if self.below is not None:
            while (packet := self.below.up.receive(self._beat)) is not None:
                yield packet[0], packet[1][0], packet[1][1]
            return
        number = 0
        while (first := number) < self.pipeline.steps:
            for batch in islice(batches, self.pipeline.steps - first):
                yield number, batch["x"], batch["y"]
                number += 1
            require(number > first, "batches", "at least one", "none")

    def step(self, number: int, x: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]) -> None:
        """Take a batch: send its activation, move, and teach the model what has come."""
        time.sleep(self.pipeline.delay)
        h = self.stage.forward(x)
        if self.above is not None:

            def wait_for_room() -> None:
                self._beat()
                self._learn(number, wait=False)  # the stage above may wait for room for targets

            self.above.up.send(number, [h, y], wait_for_room)
        if self.stage.is_trained:
            at_output = self._at_output(h, y)
            time.sleep(self.pipeline.delay)
            at_input = self.stage.backward(at_output, y)
            self._move_section()
            if self.below is not None and self.stage.kind.gradient != "none":
                assert at_input is not None
                parts = [part for part in (at_input.gradient, at_input.value) if part is not None]
                self.below.down.send(number, parts, self._beat)
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
        packet = self.above.down.receive(self._beat)
        assert packet is not None
        return LossGradient(*packet[1])

    def _learn(self, number: int, *, wait: bool) -> None:
        """Teach the model all targets that have come, after waiting for one or not."""
        if self.stage.model is None or self.above is None:
            return
        while wait or not self.above.down.queue.empty():
            packet = self.above.down.receive(self._beat)
            assert packet is not None
            wait = False
            kept = self._buffer.pop(packet[0], None)
            if kept is None:
                self.report.forgotten += 1
                continue
            self._update_model(*kept, LossGradient(*packet[1]))
            self.report.learned += 1
            self.report.late += number - packet[0]

    def _update_model(self, h: Tensor, y: Tensor, target: LossGradient) -> None:
        for done in range(self.pipeline.model_updates):
            predicted = self.stage.predict(h, y, create_graph=True)
            self.stage.teach(predicted, target, is_new=done == 0)
            self._move_model(ends_step=done == self.pipeline.model_updates - 1)

    def _beat(self) -> None:
        self.signs[BEATS] += 1


def _mover(
    module: nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None
) -> Callable[..., None]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:  # an exact model
        return lambda **_: None
    built = optimizer(trained)
    schedule = None if scheduler is None else scheduler(built)

    def move(*, ends_step: bool = True) -> None:
        built.step()
        built.zero_grad()
        if schedule is not None and ends_step:
            schedule.step()

    return move
