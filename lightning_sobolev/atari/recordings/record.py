"""Make a recording, or a longer one, shard by shard.

A shard is one game of every environment, all played at the same time from their start to their
end. What it holds is a function of the settings, the networks, the behavior, the seed and the
shard's number alone. So nothing is played twice, a recording that was broken off, even by kill -9,
has lost a shard at most, and a longer one has the bytes of the shorter one and more.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev._files import locked
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.environments import AtariSettings, Environments, check_num_actions
from lightning_sobolev.atari.policy import Behavior, decide, log_probabilities
from lightning_sobolev.atari.recordings import format as stored
from lightning_sobolev.atari.recordings.dataset import SplitSizes, split_by_episode


def identity_of(
    settings: Any,  # a dataclass: a game's, or those of an environment
    teacher: nn.Module,
    *,
    seed: int,
    behavior: Behavior,
    player: nn.Module | None = None,
) -> dict[str, Any]:
    """Gather what decides every byte of a recording, but for its length, as JSON can say it."""
    behavior.check_player(player)
    return {
        "settings": asdict(settings),
        "teacher_sha256": stored.fingerprint(teacher),
        "player_sha256": None if player is None else stored.fingerprint(player),
        "behavior": asdict(behavior),
        "seed": seed,
    }


def record(
    folder: str | Path,
    settings: AtariSettings,
    teacher: nn.Module,
    *,
    num_states: int | SplitSizes,
    behavior: Behavior | None = None,
    player: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    remake: bool = False,
    progress: bool = True,
) -> stored.Recording:
    """Let a teacher, or another player, play; store what was seen and what the teacher answers.

    A recording that is already there and long enough is opened; nothing is written then, so it may
    be somebody else's. One that is too short, or was broken off, gets more shards: the result is
    the same as if it had been made in one go. One that was made with other settings or by other
    players is replaced, with a message. Processes that want the same recording wait for each
    other. Frames go to the disk as they are seen, so memory does not grow with them.

    Args:
        folder: Where the recording is or shall be.
        settings: What is played.
        teacher: Maps scaled stacks to logits; it is copied.
        num_states: How many states at least, or the split that they must fill; whole episodes are
            recorded.
        behavior: Who acts, and how; None samples actions from the teacher's own probabilities.
        player: Who takes the decisions that ``behavior.beta`` does not give to the
            teacher; a network like the teacher, e.g. a student. It is copied.
        seed: Seed of the games and of all draws.
        device: Where the networks work.
        remake: Whether to forget what is there.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The recording, checked.

    Raises:
        ValueError: If the recording is damaged, the folder holds other files or an imported
            recording, or a network does not answer with finite numbers for the game's actions.
    """
    folder, behavior = Path(folder), behavior or Behavior()
    total = num_states.total if isinstance(num_states, SplitSizes) else num_states
    if not isinstance(total, int) or total < 1:
        raise ValueError(f"num_states must be a whole number >= 1 or a split, got {num_states!r}")
    identity = identity_of(settings, teacher, seed=seed, behavior=behavior, player=player)
    index = None if remake else stored.read_index(folder)
    if index is None:
        stored.refuse_foreign(folder)
    elif index.identity == identity and _suffice(index.shards, num_states):
        return stored.Recording(folder)
    networks = {"teacher": teacher} if player is None else {"teacher": teacher, "player": player}
    copies = {who: copy.deepcopy(net).to(device).eval() for who, net in networks.items()}
    games = _Games(Environments(settings, seed), copies, behavior, device, seed)
    games.check()  # before what is there is replaced
    with locked(folder / stored.LOCK_FILE):
        shards = _make_room(folder, identity, remake=remake)
        done = sum(shard.num_states for shard in shards)
        if shards:
            rank_zero_info(f"Recording {folder}: going on after {done} states.")
        bar = progress_bar(f"recording {settings.game}", total, completed=done, enabled=progress)
        with bar as advance:
            while not _suffice(shards, num_states):
                pieces = games.play(len(shards), advance)
                shards.append(stored.write_shard(folder, len(shards), pieces))
                stored.write_index(folder, identity, shards)
    return stored.Recording(folder)


def _suffice(shards: Sequence[stored.Shard], wanted: int | SplitSizes) -> bool:
    if isinstance(wanted, SplitSizes):
        return split_by_episode([shard.episode_lengths for shard in shards], wanted) is not None
    return sum(shard.num_states for shard in shards) >= wanted


def _make_room(folder: Path, identity: dict[str, Any], *, remake: bool) -> list[stored.Shard]:
    index = None if remake else stored.read_index(folder)
    if index is not None and index.identity != identity:
        if "imported" in index.identity:
            text = "folder must not be an imported recording, which cannot be made again, got"
            remedy = "choose another one, or pass remake=True to replace it"
            raise ValueError(f"{text} {folder}: {remedy}")
        said = difference(index.identity, identity)
        rank_zero_info(f"Recording {folder}: made with other settings ({said}), anew.")
        index = None
    if index is not None:
        stored.Recording(folder)  # what is damaged is not gone on with
    stored.clear(folder, keep=index)
    return [] if index is None else index.shards


def difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Say in which settings two identities differ."""
    nested = dict.fromkeys(("settings", "behavior"))
    old, new = ({**one, **one["settings"], **one["behavior"], **nested} for one in (found, asked))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} instead of {new.get(key)}" for key in changed)


@dataclass(frozen=True, slots=True)
class _Games:
    environments: Environments
    networks: dict[str, nn.Module]
    behavior: Behavior
    device: torch.device | str
    seed: int

    def check(self) -> None:
        """Let the players answer once; an error where they do not fit the game."""
        self._decide(self.environments.reset(self.seed), np.random.default_rng(0))

    def play(
        self, number: int, advance: Advance
    ) -> Iterator[tuple[UInt8[np.ndarray, "games height width"], np.ndarray]]:
        num_envs = self.environments.settings.num_envs
        seed = np.random.SeedSequence((self.seed, number)).generate_state(1)[0]
        running, age, stacks = np.arange(num_envs), 0, self.environments.reset(int(seed))
        _check_stacks(np.zeros_like(stacks), stacks)
        while len(running):
            seen = stacks[running]
            chosen, answers = self._decide(seen, np.random.default_rng((self.seed, number, age)))
            actions = np.zeros(num_envs, np.int64)
            actions[running] = chosen
            result = self.environments.step(actions)
            states = np.zeros(len(running), stored.state_dtype(answers.shape[1]))
            states["episode"], states["age"] = number * num_envs + running, age
            states["action"], states["log_probs"] = chosen, answers
            states["reward"] = result.rewards[running]
            states["end"] = stored.ends(result.terminated, result.truncated)[running]
            yield seen[:, -1], states
            advance(len(running))
            goes_on = ~result.ended[running]
            running, age, stacks = running[goes_on], age + 1, result.stacks
            _check_stacks(seen[goes_on], stacks[running])

    def _decide(
        self, stacks: UInt8[np.ndarray, "games stack height width"], rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " games"], Float[np.ndarray, "games actions"]]:
        answers = {}
        for who, network in self.networks.items():
            answer = log_probabilities(network, stacks, device=self.device)
            check_num_actions(answer.shape[-1], self.environments, who=who)
            if not np.isfinite(answer).all():
                raise ValueError(f"{who} must answer with finite numbers, got {answer.tolist()}")
            answers[who] = answer
        actions = decide(self.behavior, answers["teacher"], answers.get("player"), rng)
        return actions, answers["teacher"]


def _check_stacks(before: np.ndarray, after: np.ndarray) -> None:
    # single frames can stand for stacks only if a stack is the last one moved on by a frame
    if not np.array_equal(before[:, 1:], after[:, :-1]):
        raise RuntimeError("the stacks of this version of ale_py are not its last frames")
