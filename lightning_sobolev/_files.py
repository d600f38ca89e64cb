"""Files that are written whole or not at all, and their checksums."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Let a file appear under its name only when all of it is written.

    Args:
        path: The file. Its folder is made where it is missing.

    Yields:
        Another name in the same folder, to write to; of its own for each call, so that processes
        that write the same file do not meet. What an exception leaves there is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield writing
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; nobody may write there meanwhile.

    Args:
        folder: The folder; those in it are not looked at.
    """
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
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object, or None where the file is missing or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def sha256_of(path: Path) -> str:
    """Hash a file; about 1 s per GB.

    Args:
        path: The file.

    Returns:
        The digest in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
