"""What may be thrown away for another recording, and what must not."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sobolev._files import read_json
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.recording import read_identity
from lightning_sobolev.atari.storage import ARRAY_FILES, INDEX_FILE, beside

HEADER = "header.json"
"""Says in an unfinished recording what it is going to be."""


def discard_others(folder: Path, identity: dict[str, Any]) -> None:
    """Make room where another recording is, and say why.

    Args:
        folder: Place of the recording.
        identity: The recording that shall be there.

    Raises:
        ValueError: If the folder holds other things, or a recording that cannot be made again.
    """
    header = read_json(beside(folder, "partial") / HEADER) or {}
    found = read_identity(folder) or header.get("identity", identity)
    if found == identity:
        return
    if "imported" in found:
        raise ValueError(
            f"folder must not be an imported recording, which cannot be made again, got {folder}: "
            "choose another one, or pass remake=True to replace it"
        )
    rank_zero_info(
        f"Recording {folder}: made with other settings ({difference(found, identity)}), "
        "recording anew."
    )
    forget(folder)


def difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Say in which entries two recordings differ.

    Args:
        found: Identity of the one that is there.
        asked: Identity of the other.

    Returns:
        One phrase for each entry, in alphabetical order.
    """

    def flat(identity: dict[str, Any]) -> dict[str, Any]:
        inner = {**identity.get("settings", {}), **identity.get("behavior", {})}
        # what an identity does not name is as in the default behavior
        return {**asdict(Behavior()), **identity, **inner, "settings": None, "behavior": None}

    old, new = flat(found), flat(asked)
    return ", ".join(
        f"{key}: {old.get(key)} instead of {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def forget(folder: Path) -> None:
    """Delete a recording, finished or not.

    Args:
        folder: Place of the recording.

    Raises:
        ValueError: If the folder holds other things.
    """
    # a mistyped path must not cost anyone a folder of other things
    here = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if foreign := here - {*ARRAY_FILES, INDEX_FILE}:
        raise ValueError(
            f"{folder} must hold nothing but a recording to be replaced, got {sorted(foreign)}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(beside(folder, "partial"), ignore_errors=True)
