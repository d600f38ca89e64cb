"""How far long work outside the trainer is: a bar in a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """Told how much more is done, and how it goes."""

    def __call__(self, amount: int, note: str = "", /) -> None:
        """Move the bar on; a note replaces the last one."""
        ...


@contextmanager
def progress_bar(
    description: str, total: int, *, completed: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """Show how far a piece of work is; yields a function that is told how much more is done.

    Without a terminal a line goes to the log every half minute, so that whoever reads it later
    knows that the work went on.
    """
    is_shown = enabled and sys.stderr.isatty()
    said = time.monotonic()
    with tqdm(
        desc=description, total=total, initial=completed, disable=not is_shown, leave=False
    ) as bar:
        done = completed

        def advance(amount: int, note: str = "", /) -> None:
            nonlocal done, said
            done += amount
            bar.update(amount)
            if note:
                bar.set_postfix_str(note)
            if not is_shown and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("%s: %d of %d%s", description, done, total, note and f", {note}")

        yield advance
