"""Ten Atari games to be told apart by a piece of a noisy frame: color images, 32 by 32.

Nothing is downloaded: the games are played at random when the set is first asked for. A piece of a
frame at a random place, under noise, is what makes the classes hard to tell: whole frames are told
apart by their colors. ``lightning_sobolev.atari`` shows gray frames, so this asks the emulator.
"""

import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import UInt8
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._files import whole
from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled, cache_folder
from lightning_sobolev.functional.projections import generator_for

log = logging.getLogger(__name__)

GAMES = (
    *("assault", "beam_rider", "carnival", "centipede", "demon_attack"),
    *("galaxian", "phoenix", "pooyan", "space_invaders", "star_gunner"),
)
_SIDE, _SHRINK = 32, 2  # an image's pixel is the mean of 2 by 2 of the frame
_PER_EPISODE = 100  # most images of an episode; it is left then
_ACTIONS_BETWEEN = 3  # random ones between two images, each held for four frames
_NOISE = 64  # the largest, uniform over whole levels, on each of the 256 levels of a color


def atari_frames(
    root: str | Path | None = None,
    *,
    download: bool = True,
    num_train: int = 25_000,
    num_test: int = 5_000,
    seed: int = 0,
) -> ImageSet:
    """Read the set; record it first where it is not (about two minutes, extra ``atari``)."""
    games = len(GAMES)
    for name, count in (("num_train", num_train), ("num_test", num_test)):
        require(count > 0 and count % games == 0, name, f"a multiple of {games} games", count)
    folder = cache_folder() if root is None else Path(root)
    path = folder / f"atari-frames-{num_train}-{num_test}-seed-{seed}.npz"
    if not path.is_file():
        if not download:
            raise ValueError(f"Atari frames must be in {path}, got none and data.download is off")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have been quicker
                _record(path, [num_train // games, num_test // games], seed)
    try:
        # a zip file: it has a checksum of every array
        with path.open("rb") as file, np.load(file) as stored:
            train, test = (
                Labeled(*(torch.from_numpy(stored[f"{part}_{of}"]) for of in Labeled._fields))
                for part in ("train", "test")
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be whole, got {error}: delete it to record anew") from error
    return ImageSet(train, test, GAMES)


def _record(path: Path, counts: list[int], seed: int) -> None:
    parts = []
    for label, game in enumerate(GAMES):
        log.info("recording %s (%d of %d)", game, label + 1, len(GAMES))
        parts.append(_images(game, counts, generator_for(seed, label)))
    arrays = {}
    for name, images in zip(("train", "test"), zip(*parts, strict=True), strict=True):
        arrays[f"{name}_images"] = torch.cat(images).numpy()
        arrays[f"{name}_labels"] = np.arange(len(GAMES)).repeat(len(images[0]))
    with whole(path) as writing, writing.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _images(game: str, counts: list[int], generator: torch.Generator) -> Sequence[Tensor]:
    """Return noisy pieces of a game's frames; no episode is in two of the parts."""
    episodes, kept = _episodes(game, generator), []
    for count in counts:
        found: list[Tensor] = []
        while len(found) < count:
            found += next(episodes)
        kept += found[:count]
    clean = torch.stack(kept)
    span = 2 * _NOISE + 1
    noise = torch.randint(0, span, clean.shape, generator=generator, dtype=torch.int16)
    noisy = (clean + noise - _NOISE).clamp(0, 255).to(torch.uint8)
    return torch.split(noisy, counts)


def _episodes(game: str, generator: torch.Generator) -> Iterator[list[UInt8[Tensor, "3 32 32"]]]:
    try:
        from ale_py import ALEInterface, LoggerMode, roms
    except ModuleNotFoundError as error:
        text = f"Atari frames must be recorded with the extra 'atari': {error}"
        raise ValueError(text) from error
    ALEInterface.setLoggerMode(LoggerMode.Error)
    console = ALEInterface()
    console.setInt("random_seed", 0)  # without sticky actions nothing is left to chance
    console.setInt("frame_skip", 4)
    console.setFloat("repeat_action_probability", 0.0)
    console.loadROM(roms.get_rom_path(game))  # type: ignore[arg-type]
    actions = console.getMinimalActionSet()
    while True:
        console.reset_game()
        shown = []
        for _ in range(_PER_EPISODE):
            chosen = torch.randint(0, len(actions), (_ACTIONS_BETWEEN,), generator=generator)
            for action in chosen.tolist():
                console.act(actions[action])
            if console.game_over():
                break
            shown.append(_piece(console.getScreenRGB(), generator))
        yield shown


def _piece(
    frame: UInt8[np.ndarray, "210 160 3"], generator: torch.Generator
) -> UInt8[Tensor, "3 32 32"]:
    """Cut a square out at a random place, in whole numbers: the same on all machines."""
    size, sides = _SIDE * _SHRINK, frame.shape[:2]
    top, left = (int(torch.randint(side - size + 1, (1,), generator=generator)) for side in sides)
    square = torch.from_numpy(frame[top : top + size, left : left + size]).to(torch.int64)
    blocks = square.reshape(_SIDE, _SHRINK, _SIDE, _SHRINK, 3).sum(dim=(1, 3)) // _SHRINK**2
    return blocks.movedim(-1, 0).to(torch.uint8)
