"""How sections in processes of their own work beside each other, and what came of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How sections work beside each other.

    Args:
        steps: Batches.
        batch_size: Rows of every batch.
        room: Activations that may wait at a cut before the section below waits for room.
        memory: Activations that a section keeps until their targets come.
        lockstep: Whether a section waits for the target of a batch before it takes the next one:
            then it is the one-process training, at its speed.
        delay: Seconds that every forward and every backward pass of a section takes longer, to see
            what sections gain that have a device of their own.
        timeout: Seconds of silence after which a neighbor counts as lost.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int
    batch_size: int
    room: int = 4
    memory: int = 16
    lockstep: bool = False
    delay: float = 0.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "room", "memory"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.delay < 0 or self.timeout <= 0:
            raise ValueError(
                f"delay must be >= 0 and timeout > 0, got {self.delay} and {self.timeout}"
            )


@dataclass(frozen=True, slots=True)
class SectionReport:
    """What a section did.

    Args:
        section: Its number.
        seconds: From the first batch to the last step, of its own.
        waited: Seconds of these in which it waited for another section.
        learned: Targets that its model was taught.
        forgotten: Targets that came when their activation was no longer kept.
        lateness: Batches that had gone up, on average, between an activation and its target.
    """

    section: int
    seconds: float
    waited: float
    learned: int
    forgotten: int
    lateness: float
