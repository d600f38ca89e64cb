"""Teacher and student in the same game, side by side, with what each of them looks at."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.environments import (
    AtariSettings,
    Environments,
    check_num_actions,
)
from lightning_sobolev.atari.networks import scale_pixels
from lightning_sobolev.atari.policy import choose, log_probabilities
from lightning_sobolev.experiments.distillation.films import Film, save_films
from lightning_sobolev.experiments.distillation.module import DistillationModule, log_softmax
from lightning_sobolev.experiments.distillation.pictures import gradient_of
from lightning_sobolev.experiments.distillation.playing import playing_teacher
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.experiments.run.stored import chosen_weights, find_distillations, load_module
from lightning_sobolev.experiments.run.threads import one_thread
from lightning_sobolev.functional.derivatives import tape_jet

ANIMATION = "game.gif"

_FRAMES_PER_SECOND = 60


class GameAnimation:
    """Let teacher and student play the same game and write it as ``game.gif``.

    Both start from the same seed; their games differ from the first different action on. Colors as
    in :class:`~lightning_sobolev.experiments.distillation.pictures.SaliencyPicture`, but each
    player's own likeliest action and the newest picture of the stack alone, with one scale for
    both and all pictures.

    Args:
        settings: What is played.
        num_frames: Pictures of the animation at most; it is shorter if both games end.
        every: Steps of the agent from one picture to the next.
        greedy: Whether likeliest actions are taken instead of drawn ones.
        seed: Seed of the game and of the drawn actions.
        enabled: Whether to play and draw at all.

    Raises:
        ValueError: If ``num_frames`` or ``every`` is less than 1.
    """

    def __init__(
        self,
        settings: AtariSettings,
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

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Play and draw; add no number."""
        if self.enabled:
            if not isinstance(run.module, DistillationModule):
                raise ValueError(
                    f"GameAnimation needs a DistillationModule, got {type(run.module).__name__}"
                )
            self.save(run.module, run.folder, progress=run.show_progress)
        return {}

    def save(self, module: DistillationModule, folder: Path, *, progress: bool = False) -> Path:
        """Write the animation, whole or not at all.

        Args:
            module: The student; its teacher is a network.
            folder: Where the file goes.
            progress: Whether to show a progress bar.

        Returns:
            The file.

        Raises:
            ValueError: If the teacher is no network that could play.
        """
        players = {"teacher": playing_teacher(module).network, "student": module.net}
        with (
            one_thread(),
            progress_bar("filming the game", 2 * self.num_frames, enabled=progress) as advance,
        ):
            films = {
                name: self.film(network, device=module.device, advance=advance)
                for name, network in players.items()
            }
            return save_films(films, folder / ANIMATION, self._milliseconds())

    def film(
        self,
        network: nn.Module,
        *,
        device: torch.device | str = "cpu",
        advance: Advance = lambda *_: None,
    ) -> Film:
        """Play one game as :func:`~lightning_sobolev.atari.play` does, and look on.

        Args:
            network: Maps scaled stacks to logits; it is copied.
            device: Where it works.
            advance: Told how many pictures were taken.

        Returns:
            The game up to its end or the longest length.

        Raises:
            ValueError: If the outputs are not the game's actions.
        """
        environments = Environments(self.settings, self.seed, num_threads=1)
        player = copy.deepcopy(network).to(device).eval()
        rng = None if self.greedy else np.random.default_rng(self.seed)
        stacks, score = environments.reset(), 0.0
        shots: list[tuple[np.ndarray, Tensor, float]] = []
        for step in range(self.num_frames * self.every):
            log_probs = log_probabilities(player, stacks, device=device)
            check_num_actions(log_probs.shape[-1], environments, who="network")
            if step % self.every == 0:
                shots.append((stacks[0, -1].copy(), _gradient(player, stacks, device), score))
                advance(1)
            result = environments.step(choose(log_probs, rng))
            stacks, score = result.stacks, score + float(result.rewards[0])
            if result.ended[0] and result.last is not None:
                last = result.last[0, -1].copy()
                return _film([*shots, (last, torch.zeros(last.shape), score)], ended=True)
        return _film(shots, ended=False)

    def _milliseconds(self) -> int:
        return round(1000 * self.settings.frameskip * self.every / _FRAMES_PER_SECOND)


def _gradient(
    player: nn.Module, stacks: np.ndarray, device: torch.device | str
) -> Float[Tensor, "height width"]:
    states = scale_pixels(torch.as_tensor(stacks).to(device))
    jet = tape_jet(lambda point: log_softmax(player(point)), states)
    return gradient_of(jet, jet.value.argmax(-1))[0, -1].detach().float().cpu()


def _film(shots: list[tuple[np.ndarray, Tensor, float]], *, ended: bool) -> Film:
    pictures, gradients, scores = zip(*shots, strict=True)
    return Film(torch.from_numpy(np.stack(pictures)), torch.stack(gradients), scores, ended)


def animate(
    root: Path, *, num_frames: int = 300, every: int = 2, greedy: bool = False, seed: int = 1000
) -> Iterator[Path]:
    """Write ``game.gif`` into the folder of every finished distillation below a folder.

    Args:
        root: A folder with finished distillations; their recordings are not needed.
        num_frames: See :class:`GameAnimation`, as for the rest.
        every: Steps of the agent from one picture to the next.
        greedy: Whether likeliest actions are taken instead of drawn ones.
        seed: Seed of the game and of the drawn actions.

    Yields:
        Every file when it is written.

    Raises:
        ValueError: If there is no finished run, or one is no distillation.
    """
    for run in find_distillations(root):
        animation = GameAnimation(
            instantiate(run.config.env.settings),
            num_frames=num_frames,
            every=every,
            greedy=greedy,
            seed=seed,
        )
        module = load_module(run.config, chosen_weights(run.folder))
        yield animation.save(module, run.folder, progress=True)
