"""Ctrl-C and Slurm's signal take effect between two steps, never inside one."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)

_NAMES = ("SIGINT", "SIGUSR1", "SIGUSR2")  # Ctrl-C; Slurm sends one of the others before it kills
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def shell_status() -> Iterator[None]:
    """End with the exit status that a shell gives to SIGTERM; Lightning's own would be 0."""
    try:
        yield
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop


class WholeSteps(pl.Callback):
    """Hold signals back until the step, or the validation, that is under way is over.

    A handler that raises, or saves, inside an optimizer's update leaves half of it. Here it runs
    before the next step begins; a second Ctrl-C runs it at once. SIGTERM needs nothing: Lightning
    looks at it between steps. With several processes signals are left alone: each would hold its
    own back to another step and wait there for the rest.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._held: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Take the place of the handlers that stand."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or trainer.world_size > 1:
            return
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._hold)

    def on_train_batch_start(self, *_: Any) -> None:
        """Run what was held back: nothing of this step has happened yet."""
        held, self._held = self._held, []
        for number in dict.fromkeys(held):
            self._handlers[number](number, None)

    def on_train_end(self, *_: Any) -> None:
        """Put the handlers back and run what was held back."""
        self.on_exception()
        self.on_train_batch_start()

    def on_exception(self, *_: Any) -> None:
        """Put the handlers back."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._hold:
                signal.signal(number, handler)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if number in self._held:
                self._handlers[number](number, frame)
            log.warning("stopping behind this step; Ctrl-C again stops at once")
        self._held.append(number)
