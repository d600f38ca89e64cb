"""Ten Atari games to be told apart by a piece of a noisy frame: color pictures, 32 by 32.

Nothing is downloaded: ten games of ``ale-py`` are played at random when the set is first asked for.
Test pictures come from other episodes than training pictures. A piece of a frame at a random place,
under noise, is what makes the classes hard to tell: whole frames are told apart by their colors.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lightning_sobolev._files import sha256_of
from lightning_sobolev.experiments.images.image_files import cache_folder
from lightning_sobolev.experiments.images.image_set import ImageSet
from lightning_sobolev.functional.projections import generator_for

if TYPE_CHECKING:
    from ale_py import ALEInterface

log = logging.getLogger(__name__)

SIDE = 32
_FRAME = (210, 160)
_FRAMES_AN_ACTION = 4
_PARTS = {"train": "train.bin", "test": "test.bin"}
_INDEX = "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtariFrames:
    """Everything that decides which pictures are recorded.

    Args:
        games: Ten games, the classes.
        num_train: Pictures for training and validation, the same number of each game.
        num_test: Pictures for the test, from episodes that follow those for training.
        per_episode: Most pictures of one episode; it is left then.
        actions_between: Random actions, each held for four frames, between two pictures.
        shrink: Pixels of the frame, in both directions, whose mean is one of the picture: the piece
            that is shown has 32 times as many.
        noise: Largest noise, uniform over whole levels, that is added to each of the 256 levels of
            a color.
        seed: Of play, places and noise.

    Raises:
        ValueError: If there are not ten games, or a number is out of range.
    """

    games: tuple[str, ...] = (
        "assault",
        "beam_rider",
        "carnival",
        "centipede",
        "demon_attack",
        "galaxian",
        "phoenix",
        "pooyan",
        "space_invaders",
        "star_gunner",
    )
    num_train: int = 25_000
    num_test: int = 5_000
    per_episode: int = 100
    actions_between: int = 3
    shrink: int = 2
    noise: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if len(set(self.games)) != 10:
            raise ValueError(f"games must be ten different ones, got {self.games}")
        for name in ("num_train", "num_test"):
            if (got := getattr(self, name)) < 10 or got % 10:
                raise ValueError(f"{name} must be a multiple of ten games, got {got}")
        ranges = {"per_episode": (1, 10**6), "actions_between": (1, 10**6), "noise": (0, 255)}
        ranges |= {"shrink": (1, min(_FRAME) // SIDE), "seed": (0, 2**31 - 1)}
        for name, (least, most) in ranges.items():
            if not least <= (got := getattr(self, name)) <= most:
                raise ValueError(f"{name} must lie in {least}..{most}, got {got}")


def atari_frames(
    root: str | Path | None = None,
    *,
    download: bool = True,
    settings: AtariFrames = AtariFrames(),
) -> ImageSet:
    """Read the set; record it first where it is not.

    Takes a few minutes the first time, and needs the extra ``atari``.

    Args:
        root: Folder in which ``atari-frames`` is or shall be; the user's cache folder when None.
        download: Whether the set may be recorded when it is not there.
        settings: What is recorded.

    Returns:
        The pictures, ``[pictures, 3, 32, 32]``.

    Raises:
        ValueError: If it is not there and may or can not be recorded, is damaged, or was recorded
            with other settings.
    """
    folder = (Path(root) if root is not None else cache_folder()) / "atari-frames"
    if not (folder / _INDEX).is_file():
        if not download:
            raise ValueError(f"Atari frames must be in {folder}, got none and data.download is off")
        record(folder, settings)
    index = json.loads((folder / _INDEX).read_text())
    expected = _as_stored(settings)
    if index["settings"] != expected:
        differing = [key for key in expected if index["settings"].get(key) != expected[key]]
        raise ValueError(
            f"{folder} must hold pictures recorded with these settings, got others in "
            f"{', '.join(differing)}: name another data.root"
        )
    parts = []
    for name in _PARTS.values():
        content = (folder / name).read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != index["sha256"][name]:
            raise ValueError(
                f"{folder / name} must have the SHA-256 {index['sha256'][name]} that was stored "
                f"with it, got {found}: delete the folder and let it be recorded again"
            )
        parts.append(read_records(content, name))
    return ImageSet(*parts[0], *parts[1], num_classes=10)


def read_records(
    content: bytes, name: str
) -> tuple[UInt8[Tensor, "pictures 3 32 32"], Int[Tensor, " pictures"]]:
    """Decode a binary file: for each picture its class in one byte, then red, green and blue.

    Args:
        content: The file.
        name: What to call it in an error.

    Returns:
        Pictures and classes.

    Raises:
        ValueError: If the size is not that of whole records, or a class is above nine.
    """
    size = 1 + 3 * SIDE * SIDE
    if len(content) == 0 or len(content) % size:
        raise ValueError(f"{name} must hold records of {size} bytes, got {len(content)} bytes")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size)
    labels = records[:, 0].long()
    if (largest := int(labels.max())) > 9:
        raise ValueError(f"{name} must hold classes from 0 to 9, got {largest}")
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), labels


def record(folder: Path, settings: AtariFrames) -> None:
    """Play, and store the pictures with their checksums, whole or not at all.

    Args:
        folder: Where they shall be; a folder with anything in it stays as it is.
        settings: What is recorded.

    Raises:
        OSError: If nothing can be written there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as near:
        writing = Path(near) / "writing"
        writing.mkdir()
        with (writing / "train.bin").open("wb") as train, (writing / "test.bin").open("wb") as test:
            for label, game in enumerate(settings.games):
                log.info("recording %s (%d of 10)", game, label + 1)
                pictures = _pictures(label, settings)
                split = settings.num_train // 10
                train.write(_records(pictures[:split], label))
                test.write(_records(pictures[split:], label))
        sums = {n: sha256_of(writing / n) for n in _PARTS.values()}
        index = {"settings": _as_stored(settings), "ale_py": version("ale-py"), "sha256": sums}
        (writing / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
        try:
            os.rename(writing, folder)
        except OSError:
            # another process may have been quicker
            if not (folder / _INDEX).is_file():
                raise


def _as_stored(settings: AtariFrames) -> dict[str, Any]:
    return {**asdict(settings), "games": list(settings.games)}


def _records(pictures: UInt8[Tensor, "pictures 3 32 32"], label: int) -> bytes:
    rows = pictures.flatten(1)
    return torch.cat([torch.full_like(rows[:, :1], label), rows], dim=1).numpy().tobytes()


def _pictures(label: int, settings: AtariFrames) -> UInt8[Tensor, "pictures 3 32 32"]:
    """Return all pictures of a game, those for the test last."""
    generator = generator_for(settings.seed, label)
    console = _console(settings.games[label])
    pieces = []
    for pictures in (settings.num_train // 10, settings.num_test // 10):
        found: list[Tensor] = []
        while len(found) < pictures:
            frames = _episode(console, settings, generator)
            found.extend(_piece(frame, settings.shrink, generator) for frame in frames)
        # what is left of an episode goes to nobody
        pieces += found[:pictures]
    clean = torch.stack(pieces)
    span = 2 * settings.noise + 1
    noise = torch.randint(0, span, clean.shape, generator=generator, dtype=torch.int16)
    return (clean + noise - settings.noise).clamp(0, 255).to(torch.uint8)


def _console(game: str) -> "ALEInterface":
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    console = ALEInterface()
    console.setInt("random_seed", 0)  # without sticky actions nothing is left to chance
    console.setInt("frame_skip", _FRAMES_AN_ACTION)
    console.setFloat("repeat_action_probability", 0.0)
    path = roms.get_rom_path(game)
    assert path is not None
    console.loadROM(path)
    return console


def _episode(
    console: "ALEInterface", settings: AtariFrames, generator: torch.Generator
) -> Iterator[UInt8[np.ndarray, "210 160 3"]]:
    """Play one episode at random."""
    console.reset_game()
    actions = console.getMinimalActionSet()
    for _ in range(settings.per_episode):
        chosen = torch.randint(0, len(actions), (settings.actions_between,), generator=generator)
        for action in chosen.tolist():
            console.act(actions[action])
        if console.game_over():
            return
        yield console.getScreenRGB()


def _piece(
    frame: UInt8[np.ndarray, "210 160 3"], shrink: int, generator: torch.Generator
) -> UInt8[Tensor, "3 32 32"]:
    """Cut a square out at a random place, in whole numbers: the same on all machines."""
    size = SIDE * shrink
    top, left = (
        int(torch.randint(0, whole - size + 1, (1,), generator=generator))
        for whole in frame.shape[:2]
    )
    square = torch.from_numpy(frame[top : top + size, left : left + size]).to(torch.int64)
    blocks = square.reshape(SIDE, shrink, SIDE, shrink, 3).sum(dim=(1, 3)) // shrink**2
    return blocks.movedim(-1, 0).to(torch.uint8)
