"""Returns of a policy in given games; a teacher's are played once and looked up afterwards."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from lightning_sobolev._files import locked, read_json, write_json
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.evaluate import play
from lightning_sobolev.atari.recordings.format import fingerprint
from lightning_sobolev.experiments.run.threads import one_thread

Estimated = tuple[float, float]
"""Mean and its standard error."""


@dataclass(frozen=True, slots=True)
class Games:
    """Games that are the same for everybody who plays them.

    Args:
        settings: What is played.
        num_episodes: Whole episodes.
        greedy: Whether the likeliest action is taken instead of a drawn one.
        seed: Seed of the games and of the drawn actions.
    """

    settings: AtariSettings
    num_episodes: int
    greedy: bool
    seed: int

    def play(
        self, network: nn.Module, *, device: torch.device | str = "cpu", progress: bool = False
    ) -> Estimated:
        """Play all episodes.

        Args:
            network: Maps scaled stacks to logits.
            device: Where it works.
            progress: Whether to show a progress bar.

        Returns:
            Mean return and its standard error.
        """
        with one_thread():
            played = play(
                network,
                self.settings,
                num_episodes=self.num_episodes,
                greedy=self.greedy,
                seed=self.seed,
                device=device,
                progress=progress,
            )
        return played.mean, played.standard_error

    def play_once(
        self,
        network: nn.Module,
        cache: Path,
        *,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> Estimated:
        """Play, or look up what the same weights returned in the same games.

        Processes that want the same returns wait for the first one.

        Args:
            network: Maps scaled stacks to logits.
            cache: Folder of known returns.
            device: Where it works.
            progress: Whether to show a progress bar.

        Returns:
            Mean return and its standard error.
        """
        asked = {"teacher_sha256": fingerprint(network), **asdict(self)}
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / f"{name}.json"
        with locked(cache / ".lock"):
            known = read_json(path)
            if known is None or known.get("asked") != asked:
                mean, error = self.play(network, device=device, progress=progress)
                known = {"asked": asked, "mean": mean, "standard_error": error}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, known)
        return known["mean"], known["standard_error"]
