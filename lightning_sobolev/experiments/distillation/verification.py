"""The proof that a teacher can play, before anybody learns from it."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lightning_sobolev._files import write_json
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.recordings.format import fingerprint
from lightning_sobolev.experiments.distillation.returns import Games
from lightning_sobolev.experiments.run.finished import StartingRun
from lightning_sobolev.teachers import NetworkTeacher

log = logging.getLogger(__name__)

CARD = "teacher.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCheck:
    """What a teacher has to show in the game before it is distilled.

    Args:
        min_return: Least mean return; None only shows what it is.
        num_episodes: Whole episodes to play; 0 plays none.
        greedy: Whether it plays its likeliest actions instead of drawn ones.
        seed: Seed of the games and of the drawn actions.

    Raises:
        ValueError: If there is a return to reach and no episode to reach it in.
    """

    min_return: float | None = None
    num_episodes: int = 10
    greedy: bool = False
    seed: int = 1000

    def __post_init__(self) -> None:
        least = 0 if self.min_return is None else 1
        if self.num_episodes < least:
            raise ValueError(
                f"num_episodes must be at least {least} with min_return={self.min_return}, "
                f"got {self.num_episodes}"
            )


class VerifyTeacher:
    """Replay the teacher in the game and refuse one that cannot play it.

    The policies that people share differ in how their pictures were made, and one that is shown
    others can play at random without any message. Adds ``verify/teacher_return`` and its standard
    error, and leaves the teacher's card as ``teacher.json`` in the folder of the run. Returns are
    stored and looked up the next time.

    Args:
        settings: What is played.
        teacher: Who is verified; one that asks for no check is only compared with the one that the
            data come from.
        cache: Folder for the teacher's returns.
    """

    def __init__(self, settings: AtariSettings, teacher: NetworkTeacher, cache: str | Path) -> None:
        self.settings = settings
        self.teacher = teacher
        self.cache = Path(cache)

    def __call__(self, run: StartingRun) -> Mapping[str, float]:
        """Replay the teacher.

        Args:
            run: What is about to be trained.

        Returns:
            Mean return and its standard error; nothing where no check is asked for.

        Raises:
            ValueError: If the return is below the one that is asked for, or the data come from
                another network than the derivatives.
        """
        self._compare(getattr(run.datamodule, "teacher", None))
        check = getattr(self.teacher, "verify", None)
        numbers = {} if check is None or check.num_episodes == 0 else self._replay(check, run)
        card = getattr(self.teacher, "card", None)
        if card is not None:
            _save_card(run.folder, card, numbers)
        return numbers

    def _compare(self, recorded: object) -> None:
        if not isinstance(recorded, nn.Module):
            return
        if fingerprint(recorded) != fingerprint(self.teacher.network):
            raise ValueError(
                "the teacher of the data and the teacher of the derivatives must be one network, "
                "got different weights: a module that a configuration names is built more than "
                "once and must load its weights, not draw them"
            )

    def _replay(self, check: ReplayCheck, run: StartingRun) -> dict[str, float]:
        games = Games(self.settings, check.num_episodes, check.greedy, check.seed)
        mean, error = games.play_once(self.teacher.network, self.cache, progress=run.show_progress)
        found = f"{mean:.4g} +- {error:.2g} in {check.num_episodes} episodes"
        log.info("the teacher's return in %s: %s", self.settings.game, found)
        if check.min_return is not None and mean < check.min_return:
            raise ValueError(
                f"the teacher must return at least {check.min_return:g} in {self.settings.game} "
                f"(verify.min_return), got {found}: either it is no better, or it was trained on "
                "other pictures or actions than env.settings describes (frameskip, maxpool, "
                "sticky, full_action_space)"
            )
        return {"verify/teacher_return": mean, "verify/teacher_return_standard_error": error}


@rank_zero_only
def _save_card(folder: Path, card: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # JSON has no NaN, the standard error of a single episode
    replay = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    write_json(folder / CARD, {**card, "replay": replay} if replay else {**card})
