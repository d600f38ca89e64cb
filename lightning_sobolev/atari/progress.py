"""A progress bar for work outside the trainer; silent where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Advance(Protocol):
    """Told how much more is done, and how it goes."""

    def __call__(self, amount: int, note: str = "", /) -> None:
        """Move the bar on; a note replaces the last one."""
        ...


@contextmanager
def progress_bar(
    description: str, total: int, *, completed: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """Show how far a piece of work is.

    Args:
        description: What is done.
        total: How much there is to do.
        completed: How much was done earlier.
        enabled: Whether to show anything; a stream that is no terminal never gets the bar.

    Yields:
        A function that takes how much more is done, and what to say beside the bar.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (enabled and console.is_terminal),
    )
    with bar:
        task = bar.add_task(description, total=total, completed=completed, note="")

        def advance(amount: int, note: str = "", /) -> None:
            bar.advance(task, amount)
            if note:
                bar.update(task, note=note)

        yield advance
