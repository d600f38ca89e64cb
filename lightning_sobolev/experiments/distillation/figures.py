"""What teacher and student look at: gradients of log-probabilities, in a figure and in a game."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lightning_sobolev._files import whole
from lightning_sobolev._types import Jet, Query
from lightning_sobolev.atari import AtariSettings, Environments, choose, log_probabilities
from lightning_sobolev.experiments.distillation.module import DistillationModule, distillation
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.policies import DiscreteHead

VIDEO = "game.gif"

_FRAMES_PER_SECOND = 60
_ZOOM, _GAP, _CAPTION = 3, 4, 20
_COLORS = 64
_STRENGTHS = 4.0


def saliency(module: DistillationModule, x: Tensor) -> list[Float[Tensor, "batch *in"]]:
    """Return the input gradients of teacher and student for the teacher's greedy action."""
    if module.teacher is None:
        raise ValueError("module must have a teacher to compare with, got teacher=None")
    states = module.scaled(x)
    answers = module.head.answers
    teacher = module.teacher.at(Query(states, answers))
    student = tape_jet(lambda point: answers(module.net(point)), states)
    return [gradient_of(jet, teacher.value.argmax(-1)) for jet in (teacher, student)]


def gradient_of(jet: Jet, outputs: Int[Tensor, " batch"]) -> Float[Tensor, "batch *in"]:
    """Return the gradient of one output of every row; the jet's values are ``[batch, out]``."""
    cotangents = torch.nn.functional.one_hot(outputs, jet.value.shape[-1]).to(jet.value)
    return jet.vjp(cotangents[None])[0]


def overlay(
    frame: UInt8[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], limit: float
) -> UInt8[Tensor, "*shape 3"]:
    """Lay a gradient over gray frames: red raises, blue lowers; at the limit it covers all."""
    signed = (gradient / limit).clamp(-1.0, 1.0)
    gray = (1 - signed.abs()) * frame
    color = [gray + 255 * signed.clamp(min=0), gray, gray - 255 * signed.clamp(max=0)]
    return torch.stack(color, dim=-1).round().to(torch.uint8)


class SaliencyFigure(pl.Callback):
    """Draw input gradients of teacher and student over test states into ``saliency.png``.

    Red pixels raise the log-probability of the teacher's greedy action, blue ones lower it;
    gradients are summed over the stacked frames, one scale for each state.

    Args:
        num_states: States side by side, evenly spaced over the test states.
        enabled: Whether to draw at all.
    """

    def __init__(self, num_states: int = 6, enabled: bool = True) -> None:
        self.num_states, self.enabled = num_states, enabled

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if self.enabled:
            module = distillation(pl_module)
            x = _evenly_spaced(trainer.test_dataloaders, self.num_states).to(module.device)
            gradients = [rows.sum(1).cpu() for rows in saliency(module, x)]
            with whole(Path(trainer.default_root_dir) / "saliency.png") as path:
                _draw(x[:, -1].cpu(), gradients, path)


def _evenly_spaced(loader: Any, count: int) -> Tensor:
    stride = max(len(loader) // count, 1)
    x = torch.cat([batch["x"] for batch in islice(loader, 0, stride * count, stride)])
    return x[torch.linspace(0, len(x) - 1, count).long()]


def _draw(frames: Tensor, gradients: list[Tensor], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * len(frames), 4.2), layout="constrained")
    grid = figure.subplots(2, len(frames), squeeze=False)
    # The teacher's scale in both rows: a student that looks flat is flat.
    limits = [float(one.abs().quantile(0.995)) or 1.0 for one in gradients[0]]
    for name, row, maps in zip(("teacher", "student"), grid, gradients, strict=True):
        row[0].set_ylabel(name)
        for axes, *shown in zip(row, frames, maps, limits, strict=True):
            axes.imshow(overlay(*shown).numpy())
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120, format="png")


class Film(NamedTuple):
    """One game of one player, seen now and then: the newest frame, and what it looks at."""

    frames: UInt8[Tensor, "shot height width"]
    gradients: Float[Tensor, "shot height width"]  # of the greedy action's log-probability
    captions: tuple[str, ...]  # sums of the rewards before the frame


class GameVideo(pl.Callback):
    """Let teacher and student play the same game and write it as ``game.gif``.

    Both start from the same seed. Colors as in :class:`SaliencyFigure`, but each player's own
    greedy action and the newest frame of the stack alone, with one scale for both and all frames.

    Args:
        settings: What is played.
        num_frames: Frames of the video at most; it is shorter if both games end.
        every: Steps of the agent from one frame to the next.
        greedy: Whether greedy actions are taken instead of sampled ones.
        seed: Seed of the game and of the sampled actions.
        enabled: Whether to play and draw at all.
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
        if min(num_frames, every) < 1:
            raise ValueError(f"num_frames and every must be at least 1, got {num_frames}, {every}")
        self.settings = replace(settings, num_envs=1, reward_clipping=False, episodic_life=False)
        self.num_frames, self.every, self.enabled = num_frames, every, enabled
        self.greedy, self.seed = greedy, seed

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play and draw."""
        if self.enabled:
            self.save(distillation(pl_module), Path(trainer.default_root_dir) / VIDEO)

    def save(self, module: DistillationModule, path: Path) -> None:
        """Write the video of a student and its teacher, whole or not at all."""
        films = {who: self.film(one, module.device) for who, one in module.players.items()}
        milliseconds = round(1000 * self.settings.frameskip * self.every / _FRAMES_PER_SECOND)
        save_films(films, path, milliseconds)

    def film(self, network: nn.Module, device: torch.device | str = "cpu") -> Film:
        """Play one game as :func:`~lightning_sobolev.atari.play` does, and look on."""
        environments, head = Environments(self.settings, self.seed, num_threads=1), DiscreteHead()
        player = copy.deepcopy(network).to(device).eval()
        rng = None if self.greedy else np.random.default_rng(self.seed)
        stacks, score = environments.reset(), 0.0
        shots: list[tuple[Tensor, Tensor, str]] = []
        for step in range(self.num_frames * self.every):
            if step % self.every == 0:
                states = torch.tensor(stacks, device=device)
                jet = tape_jet(lambda x: head.answers(player(x)), states / 255)
                gradient = gradient_of(jet, jet.value.argmax(-1))[0, -1].detach().cpu()
                shots.append((states[0, -1].cpu(), gradient, f"{score:g}"))
            chosen = choose(log_probabilities(player, stacks, device=device), rng)
            result = environments.step(chosen)
            stacks, score = result.stacks, score + float(result.rewards[0])
            if result.last is not None:
                last = torch.tensor(result.last[0, -1])
                shots.append((last, torch.zeros(last.shape), f"{score:g}, over"))
                break
        frames, gradients, captions = zip(*shots, strict=True)
        return Film(torch.stack(frames), torch.stack(gradients), captions)


def save_films(films: Mapping[str, Film], path: Path, milliseconds: int) -> None:
    """Write films side by side as a GIF; one that ends sooner stops at its last frame."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    # One scale for everybody and all the time: a player that looks flat is flat beside the other.
    every = np.concatenate([film.gradients.abs().numpy().ravel() for film in films.values()])
    limit = float(np.quantile(every, 0.995)) or 1.0
    # a gradient is noise to a compressor: a few strengths make a sixth of the file
    colored = {
        name: overlay(film.frames, (film.gradients / limit * _STRENGTHS).trunc(), _STRENGTHS)
        for name, film in films.items()
    }
    images = []
    for number in range(max(map(len, colored.values()))):
        shots = {name: min(number, len(frames) - 1) for name, frames in colored.items()}
        screens = [colored[name][shot].numpy() for name, shot in shots.items()]
        height, width = (_ZOOM * side for side in screens[0].shape[:2])
        image = Image.new("RGB", (len(films) * (width + _GAP) - _GAP, _CAPTION + height))
        for column, ((name, shot), screen) in enumerate(zip(shots.items(), screens, strict=True)):
            left, text = column * (width + _GAP), f"{name}: {films[name].captions[shot]}"
            ImageDraw.Draw(image).text((left + 4, 2), text, "white", font)
            zoomed = screen.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
            image.paste(Image.fromarray(zoomed), (left, _CAPTION))
        images.append(image)
    # one palette for all: frames that differ only where the game does
    sample = np.concatenate([np.asarray(one) for one in images[:: max(1, len(images) // 16)]])
    palette = Image.fromarray(sample).quantize(_COLORS)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    told = {"save_all": True, "append_images": rest, "duration": milliseconds, "loop": 0}
    with whole(path) as writing:
        first.save(writing, "GIF", **told)
