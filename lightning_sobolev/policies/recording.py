"""Recorded play over vector observations: made once, whole at any time, checked when opened.

A recording is a folder of ``shard-00000.npz``, ``shard-00001.npz`` ... and ``index.json``, which
names the shards that count with their checksums, and says what decides every byte: settings,
teacher, behavior, seed. A shard is one episode of every environment, all from their start to their
end, and a function of that identity and of its number alone. So a recording that was broken off has
lost a shard at most, and a longer one is the shorter one with more shards.
"""

import copy
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev._files import locked, read_json, sha256_of, whole, write_json
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.recordings.dataset import SplitSizes, split_by_episode
from lightning_sobolev.atari.recordings.format import checksum, ends
from lightning_sobolev.atari.recordings.record import difference, identity_of
from lightning_sobolev.policies.environments import EnvSettings, Transition, VectorEnvironments
from lightning_sobolev.policies.heads import Head

FORMAT_VERSION = 1
INDEX_FILE, LOCK_FILE = "index.json", ".lock"
COLUMNS = ("observations", "answers", "actions", "rewards", "ends")

_OWN_NAMES = re.compile(r"(index\.json|shard-\d{5}\.npz)(\.[0-9a-f]{8}\.tmp)?")
_DAMAGED = (
    "damaged recording: {path} ({error}); pass remake=True to record anew, or delete {folder}"
)


def answers_of(
    network: nn.Module, head: Head, observations: np.ndarray, *, device: Any, who: str = "network"
) -> Float[np.ndarray, "batch answers"]:
    """Ask a network, in eval mode and on a device, for its policy; refuse answers of no use."""
    with torch.inference_mode():
        try:
            outputs = network(torch.as_tensor(observations).to(device))
        except RuntimeError as error:  # what torch says of sizes that do not fit names nobody
            shape = list(observations.shape)
            raise ValueError(f"{who} must take observations of shape {shape}: {error}") from error
        is_tensor = isinstance(outputs, torch.Tensor)
        require(is_tensor, f"answers of {who}", "a tensor", type(outputs).__name__)
        if outputs.ndim != 2 or len(outputs) != len(observations):
            wanted = f"[{len(observations)}, outputs]"
            raise ValueError(f"{who} must answer {wanted}, got {list(outputs.shape)}")
        head.check(outputs.shape[1], who)
        answers = np.asarray(head.answers(outputs).cpu().numpy(), np.float32)
    if not np.isfinite(answers).all():
        raise ValueError(f"{who} must answer with finite numbers, got {answers.tolist()[:2]}")
    return answers


class PolicyRecording:
    """A finished recording, opened and read.

    ``observations`` is what was seen, float32; ``answers`` the teacher's log-probabilities, or its
    means and logarithms of deviations; ``actions`` what was drawn, before bounds are applied;
    ``rewards``; ``ends`` 1 where an episode terminated, 2 where it was cut. Rows are in the order
    of the episodes.

    Args:
        folder: The recording.
        verify: Whether to compare every file with its checksum.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file is damaged, which is named.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        if (index := read_index(self.folder)) is None:
            raise FileNotFoundError(f"no recording at {self.folder}: call record_policy() first")
        self.identity: dict[str, Any] = index["identity"]
        self.settings = EnvSettings(**self.identity["settings"])
        self.episode_lengths: list[list[int]] = [one["episodes"] for one in index["shards"]]
        parts = [self._open(*shard, verify) for shard in enumerate(index["shards"])]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        self.observations, self.answers = columns["observations"], columns["answers"]
        self.actions, self.rewards = columns["actions"], columns["rewards"]
        self.ends = columns["ends"]

    def _open(self, number: int, shard: dict[str, Any], verify: bool) -> dict[str, np.ndarray]:
        path = _shard_file(self.folder, number)
        try:
            if verify and sha256_of(path) != shard["sha256"]:
                raise ValueError(f"does not have the checksum of {INDEX_FILE}")
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in COLUMNS}
            lengths = {len(column) for column in columns.values()}
            if lengths != {sum(shard["episodes"])}:
                raise ValueError(f"has columns of {sorted(lengths)} rows")
        except (OSError, ValueError, KeyError, EOFError) as error:
            text = _DAMAGED.format(path=path, error=error, folder=self.folder)
            raise ValueError(text) from error
        return columns

    @property
    def num_states(self) -> int:
        """States in the recording."""
        return len(self.observations)

    @property
    def log_probs(self) -> Float[np.ndarray, "states answers"]:
        """The teacher's answers, under the name that batches have for them."""
        return np.asarray(self.answers)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Entries of an observation, and of an answer."""
        return self.observations.shape[1], self.answers.shape[1]

    def x(self, rows: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch obs"]:
        """Look up what was seen in some states."""
        return np.asarray(self.observations[rows])


def read_index(folder: Path) -> dict[str, Any] | None:
    """Read what a recording says of itself, or None where there is none; refuse a damaged one."""
    if not (path := folder / INDEX_FILE).exists():
        return None
    content = read_json(path)
    if content is None or content.pop("sha256", None) != checksum(content):
        error = "is not readable" if content is None else "does not have its own checksum"
        raise ValueError(_DAMAGED.format(path=path, error=error, folder=folder))
    if (version := content.get("format")) != FORMAT_VERSION:
        text = f"{folder} must have format {FORMAT_VERSION}, got {version}"
        raise ValueError(f"{text}, of another version of this package: delete the folder")
    if missing := [key for key in ("identity", "shards") if key not in content]:
        raise ValueError(_DAMAGED.format(path=path, error=f"lacks {missing}", folder=folder))
    return content


def _write_index(folder: Path, identity: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    content = {"format": FORMAT_VERSION, "identity": identity, "shards": shards}
    write_json(folder / INDEX_FILE, {**content, "sha256": checksum(content)})


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npz"


def record_policy(
    folder: str | Path,
    settings: EnvSettings,
    teacher: nn.Module,
    *,
    num_states: int | SplitSizes,
    behavior: Behavior | None = None,
    player: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    remake: bool = False,
    progress: bool = True,
) -> PolicyRecording:
    """Let a teacher, or another player, play; store what was seen and what the teacher answers.

    A recording that is there and long enough is opened; one that is too short, or was broken off,
    gets more shards, to the same bytes as if it had been made in one go; one that was made with
    other settings or by other players is replaced, with a message. Processes that want the same
    recording wait for each other. Whoever plays sees whole observations.

    Args:
        folder: Where the recording is or shall be.
        settings: What is played.
        teacher: Maps observations to outputs; it is copied.
        num_states: How many states at least, or the split that they must fill; whole episodes are
            recorded.
        behavior: Who acts, and how; None samples from the teacher's own policy.
        player: Who takes the decisions that ``behavior.beta`` does not give to the teacher.
        seed: Seed of the episodes and of all draws.
        device: Where the networks work.
        remake: Whether to forget what is there.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The recording, checked.

    Raises:
        ValueError: If the recording is damaged, the folder holds other files, or a network does not
            answer with finite numbers as the environment's head needs.
    """
    folder, behavior = Path(folder), behavior or Behavior()
    total = num_states.total if isinstance(num_states, SplitSizes) else num_states
    require(type(total) is int and total >= 1, "num_states", "a number >= 1 or a split", num_states)
    identity = identity_of(settings, teacher, seed=seed, behavior=behavior, player=player)
    with locked(folder / LOCK_FILE):
        shards = _make_room(folder, identity, remake=remake)
        if not _suffice(shards, num_states):
            networks = {"teacher": teacher} | ({} if player is None else {"player": player})
            copies = {who: copy.deepcopy(one).to(device).eval() for who, one in networks.items()}
            episodes = _Episodes(VectorEnvironments(settings, seed), copies, behavior, device, seed)
            done = sum(sum(shard["episodes"]) for shard in shards)
            bar = progress_bar(f"recording {settings.id}", total, completed=done, enabled=progress)
            with bar as advance:
                while not _suffice(shards, num_states):
                    shards.append(episodes.write(folder, len(shards), advance))
                    _write_index(folder, identity, shards)
    return PolicyRecording(folder)


def _suffice(shards: Sequence[dict[str, Any]], wanted: int | SplitSizes) -> bool:
    lengths = [shard["episodes"] for shard in shards]
    if isinstance(wanted, SplitSizes):
        return split_by_episode(lengths, wanted) is not None
    return sum(map(sum, lengths)) >= wanted


def _make_room(folder: Path, identity: dict[str, Any], *, remake: bool) -> list[dict[str, Any]]:
    names = {path.name for path in folder.iterdir()} - {LOCK_FILE}
    if foreign := sorted(name for name in names if not _OWN_NAMES.fullmatch(name)):
        raise ValueError(f"folder must hold a recording or nothing, got {folder} with {foreign}")
    index = None if remake else read_index(folder)
    if index is not None and index["identity"] != identity:
        said = difference(index["identity"], identity)
        rank_zero_info(f"Recording {folder}: made with other settings ({said}), anew.")
        index = None
    shards = [] if index is None else list(index["shards"])
    if shards:
        PolicyRecording(folder)  # what is damaged is not gone on with
    kept = {_shard_file(folder, number).name for number in range(len(shards))}
    kept |= {LOCK_FILE} | ({INDEX_FILE} if shards else set())
    for name in sorted(names - kept):  # the index comes first: without it nothing is here
        (folder / name).unlink()
    return shards


@dataclass(frozen=True, slots=True)
class _Episodes:
    environments: VectorEnvironments
    networks: dict[str, nn.Module]
    behavior: Behavior
    device: torch.device | str
    seed: int

    def write(self, folder: Path, number: int, advance: Advance) -> dict[str, Any]:
        """Play and write a shard; return what the index shall say of it."""
        rows = self.play(number, advance)
        order = np.lexsort((rows.pop("age"), rows["env"]))
        lengths = np.unique(rows.pop("env"), return_counts=True)[1]
        content = io.BytesIO()  # to a file it would not tell of a disk that is full at the end
        columns: dict[str, Any] = {name: column[order] for name, column in rows.items()}
        np.savez(content, **columns)
        path = _shard_file(folder, number)
        with whole(path) as writing:
            writing.write_bytes(content.getbuffer())
        return {"episodes": lengths.tolist(), "sha256": sha256_of(path)}

    def play(self, number: int, advance: Advance) -> dict[str, np.ndarray]:
        """Play one episode of every environment; return a row for every state that was visited."""
        settings = self.environments.settings
        head = Head.for_env(settings)
        seed = np.random.SeedSequence((self.seed, number)).generate_state(1)[0]
        observations = self.environments.reset(int(seed))
        is_running, age = np.ones(settings.num_envs, bool), 0
        parts: list[dict[str, np.ndarray]] = []
        while is_running.any():
            rng = np.random.default_rng((self.seed, number, age))
            # all are asked, so that a draw does not depend on who is still running
            row, result = self._step(head, observations, rng)
            row |= {"env": np.arange(settings.num_envs), "age": np.full(settings.num_envs, age)}
            parts.append({name: column[is_running] for name, column in row.items()})
            advance(int(is_running.sum()))
            is_running, age = is_running & ~result.ended, age + 1
            observations = result.observations
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _step(
        self, head: Head, observations: np.ndarray, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], Transition]:
        answers = {
            who: answers_of(one, head, observations, device=self.device, who=who)
            for who, one in self.networks.items()
        }
        chosen = head.decide(self.behavior, answers["teacher"], answers.get("player"), rng)
        result = self.environments.step(head.actions(chosen))
        row = {
            "observations": observations,
            "answers": answers["teacher"],
            "actions": chosen,
            "rewards": result.rewards.astype(np.float32),
            "ends": ends(result.terminated, result.truncated).astype(np.uint8),
        }
        return row, result
