"""How many threads torch uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Use a single thread inside the block.

    Policies that are asked a few states at a time gain nothing from more, and where other
    programs want the cores too, waiting for each other made playing seven times slower (measured).

    Yields:
        Nothing; the earlier number is back afterwards.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
