"""How stages in processes of their own work beside each other, and what came of it."""

from dataclasses import dataclass

from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How stages work beside each other.

    Args:
        steps: Batches.
        capacity: Activations that may wait at a cut before the stage below waits for room.
        buffer: Activations that a stage keeps until their targets come.
        lockstep: Whether a stage waits for the target of a batch before it takes the next one:
            then it is the one-process training, at its speed.
        delay: Seconds that every forward and every backward pass of a section takes longer, to see
            what stages gain that have a device of their own.
        timeout: Seconds without a sign after which a stage counts as lost.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int
    capacity: int = 4
    buffer: int = 16
    lockstep: bool = False
    delay: float = 0.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("steps", "capacity", "buffer"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.delay < 0 or self.timeout <= 0:
            raise ValueError(
                f"delay must be >= 0 and timeout > 0, got {self.delay} and {self.timeout}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizers:
    """What trains the stages.

    Args:
        section: Builds the optimizer of a section.
        model: Builds that of a model.
        scheduler: Builds the schedule of each of them.
    """

    section: OptimizerFactory
    model: OptimizerFactory
    scheduler: SchedulerFactory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """What a stage did.

    Args:
        seconds: From the first batch to the last step, of its own.
        waited: Seconds of these in which it waited for another stage.
        learned: Targets that its model was taught.
        forgotten: Targets that came when their activation was no longer kept.
        lateness: Batches that had gone up, on average, between an activation and its target.
    """

    seconds: float
    waited: float
    learned: int
    forgotten: int
    lateness: float
