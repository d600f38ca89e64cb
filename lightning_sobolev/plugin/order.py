"""Where the callback stands among those of its trainer."""

from lightning.pytorch import Callback, Trainer

# By name: pytorch_lightning has classes of its own.
_FINDERS = ("LearningRateFinder", "BatchSizeFinder")


def ahead_of_finders(trainer: Trainer, callback: Callback) -> None:
    """Let ``callback`` begin before those that search for a setting, else by the plain loss."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [other for other in callbacks if other is not callback]
    places = [n for n, other in enumerate(others) if type(other).__name__ in _FINDERS]
    if places:
        moved = [*others[: places[0]], callback, *others[places[0] :]]
        trainer.callbacks = moved  # type: ignore[attr-defined]
