"""What a file that cannot be read says of itself."""

import difflib
import importlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Name the file and what it should have been, whatever a parser makes of its bytes."""
    try:
        yield
    except (MemoryError, ModuleNotFoundError):  # not the file's fault
        raise
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} must be {expected}, got {got}") from error


def require_key(key: str, known: Collection[str], where: str) -> None:
    """Raise, list the keys there are and name the one that was perhaps meant, unless it is one."""
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{where} must hold the key {key!r}, got {sorted(known)}{meant}")


def optional(module: str, user: str, extra: str) -> Any:
    """Import a package that only some kinds of files need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        text = f"{user} needs {module}: pip install 'lightning-sobolev[{extra}]'"
        raise ModuleNotFoundError(text) from error
