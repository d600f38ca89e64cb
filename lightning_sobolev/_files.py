"""Files that are written whole or not at all, their checksums, and a lock for who writes them."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Let a file appear under its name only when all of it is written.

    What it yields is another name in the same folder, made where it is missing: one of its own for
    each call, so that processes that write the same file do not meet. What an exception leaves
    there is deleted.

    Raises:
        OSError: If it cannot be written, e.g. on a full disk; names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield writing
        os.replace(writing, path)
    except OSError as error:
        if error.filename is None:  # a failed write does not say where
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        writing.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; nobody may write there meanwhile."""
    for leftover in folder.glob(f"*.{'[0-9a-f]' * 8}.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with whole(path) as writing:
        writing.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can say, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where the file is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def sha256_of(path: Path) -> str:
    """Return the digest of a file in hexadecimal; about 1 s per GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on something; the others say that they wait, and wait.

    The lock's file stays; the lock itself falls with the process.

    Raises:
        OSError: If the file system does not let anything be locked; names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: another process holds this lock, waiting for it.", path)
            lock.acquire()
    except OSError as error:
        raise OSError(error.errno, f"cannot be locked ({error.strerror})", str(path)) from error
    try:
        yield
    finally:
        lock.release()
