"""Teacher and student in the same game, side by side, with what each of them looks at."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lightning_sobolev._files import whole
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari import (
    AtariSettings,
    Environments,
    choose,
    log_probabilities,
    scale_pixels,
)
from lightning_sobolev.atari.environments import check_num_actions
from lightning_sobolev.experiments.distillation.callbacks import shows_no_bar
from lightning_sobolev.experiments.distillation.module import DistillationModule, log_softmax
from lightning_sobolev.experiments.distillation.saliency import gradient_of, overlay
from lightning_sobolev.functional.derivatives import tape_jet

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEO = "game.gif"

_FRAMES_PER_SECOND = 60
_ZOOM, _GAP, _CAPTION = 3, 4, 20
_COLORS = 64
_STRENGTHS = 4.0


@dataclass(frozen=True, slots=True)
class Film:
    """One game of one player, seen now and then: the newest frame, and what it looks at."""

    frames: UInt8[Tensor, "shot height width"]
    gradients: Float[Tensor, "shot height width"]  # of the greedy action's log-probability
    scores: tuple[float, ...]  # sums of the rewards before the frame
    ended: bool  # whether the last frame is the game's, at which nothing is decided any more


class GameVideo(pl.Callback):
    """Let teacher and student play the same game and write it as ``game.gif``.

    Both start from the same seed; their games differ from the first different action on. Colors as
    in :class:`~lightning_sobolev.experiments.distillation.saliency.SaliencyFigure`, but each
    player's own greedy action and the newest frame of the stack alone, with one scale for both and
    all frames.

    Args:
        settings: What is played.
        num_frames: Frames of the video at most; it is shorter if both games end.
        every: Steps of the agent from one frame to the next.
        greedy: Whether greedy actions are taken instead of sampled ones.
        seed: Seed of the game and of the sampled actions.
        enabled: Whether to play and draw at all.

    Raises:
        ValueError: If ``num_frames`` or ``every`` is less than 1.
    """

    def __init__(
        self,
        settings: AtariSettings,
        *,
        num_frames: int = 300,
        every: int = 2,
        greedy: bool = False,
        seed: int = 1000,
        enabled: bool = True,
    ) -> None:
        for name, value in (("num_frames", num_frames), ("every", every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.settings = replace(settings, num_envs=1, reward_clipping=False, episodic_life=False)
        self.num_frames, self.every = num_frames, every
        self.greedy, self.seed = greedy, seed
        self.enabled = enabled

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play and draw."""
        if self.enabled:
            module = DistillationModule.of(pl_module, self)
            path = Path(trainer.default_root_dir) / VIDEO
            self.save(module, path, progress=shows_no_bar(trainer))

    def save(self, module: DistillationModule, path: Path, *, progress: bool = True) -> Path:
        """Write the video of a student and its teacher, whole or not at all; return its path."""
        players = {"teacher": module.playing_teacher, "student": module.net}
        with progress_bar("filming the game", 2 * self.num_frames, enabled=progress) as advance:
            films = {
                name: self.film(network, device=module.device, advance=advance)
                for name, network in players.items()
            }
        milliseconds = round(1000 * self.settings.frameskip * self.every / _FRAMES_PER_SECOND)
        save_films(films, path, milliseconds)
        return path

    def film(
        self,
        network: nn.Module,
        *,
        device: torch.device | str = "cpu",
        advance: Advance = lambda *_: None,
    ) -> Film:
        """Play one game as :func:`~lightning_sobolev.atari.play` does, and look on."""
        environments = Environments(self.settings, self.seed, num_threads=1)
        player = copy.deepcopy(network).to(device).eval()
        rng = None if self.greedy else np.random.default_rng(self.seed)
        stacks, score, ended = environments.reset(), 0.0, False
        shots: list[tuple[np.ndarray, Tensor, float]] = []
        for step in range(self.num_frames * self.every):
            log_probs = log_probabilities(player, stacks, device=device)
            check_num_actions(log_probs.shape[-1], environments, who="network")
            if step % self.every == 0:
                shots.append((stacks[0, -1].copy(), _gradient(player, stacks, device), score))
                advance(1)
            result = environments.step(choose(log_probs, rng))
            stacks, score = result.stacks, score + float(result.rewards[0])
            if result.last is not None:
                last = result.last[0, -1].copy()
                shots.append((last, torch.zeros(last.shape), score))
                ended = True
                break
        frames, gradients, scores = zip(*shots, strict=True)
        return Film(torch.from_numpy(np.stack(frames)), torch.stack(gradients), scores, ended)


def _gradient(
    player: nn.Module, stacks: np.ndarray, device: torch.device | str
) -> Float[Tensor, "height width"]:
    states = scale_pixels(torch.as_tensor(stacks).to(device))
    jet = tape_jet(lambda point: log_softmax(player(point)), states)
    return gradient_of(jet, jet.value.argmax(-1))[0, -1].detach().float().cpu()


def save_films(films: Mapping[str, Film], path: Path, milliseconds: int) -> None:
    """Write films by the names of their players side by side as a GIF, whole or not at all.

    A film that ends sooner stops at its last frame. GIF knows multiples of ten milliseconds.
    """
    from PIL import Image

    images = list(_images(films))
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


def _images(films: Mapping[str, Film]) -> Iterator["Image"]:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    # One scale for everybody and all the time: a player that looks flat is flat beside the other.
    every = np.concatenate([film.gradients.abs().numpy().ravel() for film in films.values()])
    limit = float(np.quantile(every, 0.995)) or 1.0
    colored = [_colored(film, limit) for film in films.values()]
    height, width = colored[0].shape[1] * _ZOOM, colored[0].shape[2] * _ZOOM
    size = (len(films) * (width + _GAP) - _GAP, _CAPTION + height)
    for number in range(max(map(len, colored))):
        image = Image.new("RGB", size)
        draw = ImageDraw.Draw(image)
        for column, ((name, film), frames) in enumerate(zip(films.items(), colored, strict=True)):
            shot, left = min(number, len(frames) - 1), column * (width + _GAP)
            over = ", over" if film.ended and shot == len(frames) - 1 else ""
            draw.text((left + 4, 2), f"{name}: {film.scores[shot]:g}{over}", "white", font)
            frame = Image.fromarray(frames[shot])
            image.paste(frame.resize((width, height), Image.Resampling.NEAREST), (left, _CAPTION))
        yield image


def _colored(film: Film, limit: float) -> UInt8[np.ndarray, "shot height width 3"]:
    # A gradient is noise to a compressor: a few strengths, the weakest of them nothing, make a
    # sixth of the file (300 frames of Pong: 1.7 MB against 10.9).
    steps = (film.gradients / limit * _STRENGTHS).trunc()
    colored: np.ndarray = overlay(film.frames, steps, _STRENGTHS).numpy()
    return colored
