"""Films of games: what was on the screen, what the player looked at, and the score."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.distillation.pictures import overlay

if TYPE_CHECKING:
    from PIL.Image import Image

_ZOOM, _GAP, _CAPTION = 3, 4, 20
_COLORS = 64
_STRENGTHS = 4.0


@dataclass(frozen=True, slots=True)
class Film:
    """One game of one player, seen now and then.

    Args:
        pictures: What was newest on the screen.
        gradients: Of the likeliest action's log-probability, in the pixels of that picture.
        scores: Sum of the rewards before it.
        ended: Whether the last picture is the game's last, at which nothing is decided any more.
    """

    pictures: UInt8[Tensor, "shot height width"]
    gradients: Float[Tensor, "shot height width"]
    scores: tuple[float, ...]
    ended: bool

    def __len__(self) -> int:
        """Shots."""
        return len(self.scores)


def save_films(films: Mapping[str, Film], path: Path, milliseconds: int) -> Path:
    """Write films side by side as a GIF, whole or not at all.

    Args:
        films: By the name of the player. A film that ends sooner stops at its last picture.
        path: The file.
        milliseconds: From one picture to the next; GIF knows multiples of ten.

    Returns:
        The file.
    """
    from PIL import Image

    images = list(_draw(films))
    # One palette for all: a color that means the same everywhere, and frames that differ only
    # where the game does.
    sample = images[:: max(1, len(images) // 16)]
    mosaic = Image.new("RGB", (images[0].width, images[0].height * len(sample)))
    for row, image in enumerate(sample):
        mosaic.paste(image, (0, row * image.height))
    palette = mosaic.quantize(_COLORS)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    told = {"save_all": True, "append_images": rest, "duration": milliseconds, "loop": 0}
    with whole(path) as writing:
        first.save(writing, "GIF", **told)
    return path


def _draw(films: Mapping[str, Film]) -> Iterator["Image"]:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    # One scale for everybody and all the time: a player that looks flat is flat beside the other.
    every = np.concatenate([film.gradients.abs().numpy().ravel() for film in films.values()])
    limit = float(np.quantile(every, 0.995)) or 1.0
    colored = [_colored(film, limit) for film in films.values()]
    height, width = colored[0].shape[1] * _ZOOM, colored[0].shape[2] * _ZOOM
    size = (len(films) * (width + _GAP) - _GAP, _CAPTION + height)
    for number in range(max(map(len, films.values()))):
        image = Image.new("RGB", size)
        draw = ImageDraw.Draw(image)
        for column, ((name, film), pictures) in enumerate(zip(films.items(), colored, strict=True)):
            shot, left = min(number, len(film) - 1), column * (width + _GAP)
            over = ", over" if film.ended and shot == len(film) - 1 else ""
            draw.text((left + 4, 2), f"{name}: {film.scores[shot]:g}{over}", "white", font)
            picture = Image.fromarray(pictures[shot])
            image.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, _CAPTION))
        yield image


def _colored(film: Film, limit: float) -> UInt8[np.ndarray, "shot height width 3"]:
    # A gradient is noise to a compressor: a few strengths, the weakest of them nothing, make a
    # sixth of the file (300 pictures of Pong: 1.7 MB against 10.9).
    steps = (film.gradients / limit * _STRENGTHS).trunc()
    colored: np.ndarray = overlay(film.pictures, steps, _STRENGTHS).numpy()
    return colored
