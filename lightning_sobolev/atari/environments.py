"""Atari games in the Arcade Learning Environment: the same for recording, evaluating, training.

Note [reset at once]: the environments restart an ended episode in the same step. So every step is
a transition, no action is ever ignored, and the stack that follows an end is the first one of the
next episode. Nothing is decided at the last frame of an ended game; it is in ``Transition.last``.

Note [the ball waits]: in Breakout no ball is in play after a lost life until FIRE is pressed, and
``use_fire_reset`` presses it at the start of a game alone: an idle game stands still until it is
cut. With ``fire_on_life_loss`` the first action after a lost life is FIRE, whatever was chosen.
"""

import difflib
from dataclasses import KW_ONLY, asdict, dataclass
from typing import NamedTuple

import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, Int, UInt8

from lightning_sobolev._checks import require

_NUMBERS = {"num_envs": 1, "frameskip": 1, "img_height": 1, "img_width": 1, "stack_num": 1}
_NUMBERS |= {"noop_max": 0, "max_num_frames_per_episode": 1}


def games() -> tuple[str, ...]:
    """Return the names of the games that can be played."""
    return tuple(sorted(roms.get_all_rom_ids()))


@dataclass(frozen=True, slots=True)
class AtariSettings:
    """Everything that decides what an agent sees and what its actions do.

    The defaults are those of Mnih et al. 2015 (gray frames of 84 x 84, four stacked, each action
    held for four frames, up to 30 idle frames at the start) with the whole game as one episode.

    Args:
        game: Name of the game in snake case, e.g. ``"ms_pacman"``.
        num_envs: Games played side by side.
        frameskip: Frames of the emulator for which an action is held; one step of the agent.
        img_height: Height of a frame in pixels.
        img_width: Width of a frame in pixels.
        stack_num: Frames in a stack, the newest last; zeros before the first of an episode.
        maxpool: Whether a frame is the brighter of the emulator's last two (removes flicker).
        noop_max: Most idle frames at the start of an episode; their number is drawn at random.
        use_fire_reset: Whether FIRE is pressed at the start where the game needs it.
        sticky: Whether an action is repeated with probability 0.25 instead of the chosen one.
        fire_on_life_loss: Whether FIRE is pressed after a lost life; see Note [the ball waits].
        episodic_life: Whether an episode ends when a life is lost; the game then starts anew, so
            nothing beyond a first life is ever seen.
        full_action_space: Whether all 18 actions are offered instead of those the game knows.
        reward_clipping: Whether rewards are clipped to -1, 0 and 1.
        max_num_frames_per_episode: Frames after which an episode is cut.

    Source:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, Methods; Machado
        et al. 2018, Revisiting the Arcade Learning Environment, section 5 for ``sticky``.
    """

    game: str = "pong"
    _: KW_ONLY
    num_envs: int = 8
    frameskip: int = 4
    img_height: int = 84
    img_width: int = 84
    stack_num: int = 4
    maxpool: bool = True
    noop_max: int = 30
    use_fire_reset: bool = True
    fire_on_life_loss: bool = False
    sticky: bool = False
    episodic_life: bool = False
    full_action_space: bool = False
    reward_clipping: bool = False
    max_num_frames_per_episode: int = 108_000

    def __post_init__(self) -> None:
        if self.game not in (known := games()):
            close = difflib.get_close_matches(str(self.game), known, n=3, cutoff=0.5)
            hint = ", ".join(close) or f"one of {len(known)}, e.g. pong"
            raise ValueError(f"game must name a game in snake case ({hint}?), got {self.game!r}")
        for name, least in _NUMBERS.items():
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            require(is_whole and value >= least, name, f"a whole number >= {least}", value)


def num_actions(settings: AtariSettings) -> int:
    """Count the actions to choose from, without starting a game."""
    ALEInterface.setLoggerMode(LoggerMode.Error)
    emulator = ALEInterface()
    emulator.loadROM(str(roms.get_rom_path(settings.game)))
    full = settings.full_action_space
    return len(emulator.getLegalActionSet() if full else emulator.getMinimalActionSet())


class Transition(NamedTuple):
    """What one step of all games brought; see Note [reset at once].

    ``lost_life`` marks games that go on with a life less; ``last`` holds the last stacks of games
    that ended (its other rows mean nothing), or None.
    """

    stacks: UInt8[np.ndarray, "env stack height width"]
    rewards: Float[np.ndarray, " env"]
    terminated: Bool[np.ndarray, " env"]
    truncated: Bool[np.ndarray, " env"]
    lost_life: Bool[np.ndarray, " env"]
    last: UInt8[np.ndarray, "env stack height width"] | None

    @property
    def ended(self) -> Bool[np.ndarray, " env"]:
        """Whether an episode ended, in either way."""
        return np.asarray(self.terminated | self.truncated)


class Environments:
    """Several copies of one game, seeded, stepped together.

    The same settings, seed and actions give the same frames bit for bit; the number of threads, 0
    for one per core, changes nothing.
    """

    def __init__(self, settings: AtariSettings, seed: int, *, num_threads: int = 0) -> None:
        require(seed >= 0, "seed", "at least 0", seed)
        options = asdict(settings)
        sticky, fire = options.pop("sticky"), options.pop("fire_on_life_loss")
        self.settings, self._seed = settings, seed
        self._env = AtariVectorEnv(
            **options,
            repeat_action_probability=0.25 if sticky else 0.0,
            num_threads=num_threads,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        if fire and "FIRE" not in self.action_meanings:
            game = f"{settings.game}, which has no FIRE"
            raise ValueError(f"fire_on_life_loss must be false for {game}, got true")
        self._fire = self.action_meanings.index("FIRE") if fire else None
        self._lives = self._lost_life = np.zeros(settings.num_envs, bool)

    @property
    def num_actions(self) -> int:
        """Actions to choose from."""
        return len(self.action_meanings)

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """What each action presses, in the order of the network's outputs."""
        return tuple(action.name for action in self._env.ale.get_action_set())

    def reset(self, seed: int | None = None) -> UInt8[np.ndarray, "env stack height width"]:
        """Start every game from a seed, by default that of all, and return the first stacks."""
        # consecutive seeds would give runs with seeds 0 and 1 all but one of their games in common
        spread = np.random.SeedSequence(self._seed if seed is None else seed)
        seeds = spread.generate_state(self.settings.num_envs) >> 1
        stacks, info = self._env.reset(seed=seeds.astype(np.int32))
        self._lives, self._lost_life = np.array(info["lives"]), np.zeros(len(seeds), bool)
        return np.asarray(stacks)

    def step(self, actions: Int[np.ndarray, " env"]) -> Transition:
        """Hold one action in every game for ``frameskip`` frames; say what that brought."""
        num_envs, last = self.settings.num_envs, self.num_actions - 1
        if actions.shape != (num_envs,) or actions.min() < 0 or actions.max() > last:
            raise ValueError(f"actions must be {num_envs} in 0..{last}, got {actions.tolist()}")
        pressed = actions if self._fire is None else np.where(self._lost_life, self._fire, actions)
        stacks, rewards, *ends, info = self._env.step(pressed.astype(np.int64))
        terminated, truncated = (np.asarray(end, dtype=bool) for end in ends)
        before, self._lives = self._lives, np.array(info["lives"])
        # some games go on for a few frames without a life: there is nothing to launch any more
        lost = (self._lives < before) & (self._lives > 0) & ~(terminated | truncated)
        self._lost_life = lost
        rewards, last_stacks = np.asarray(rewards, dtype=np.float32), info.get("final_obs")
        return Transition(np.asarray(stacks), rewards, terminated, truncated, lost, last_stacks)


def check_num_actions(num_outputs: int, environments: Environments, *, who: str) -> None:
    """Refuse a policy, called ``who``, whose outputs are not the game's actions."""
    if num_outputs != environments.num_actions:
        outputs = f"{environments.num_actions} outputs for {environments.settings.game}"
        meanings = ", ".join(environments.action_meanings)
        raise ValueError(f"{who} must have {outputs} ({meanings}), got {num_outputs}")
