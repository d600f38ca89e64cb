"""Who acts while a recording is made, and how: the behavior policy.

Whoever acts, the teacher answers every state, and its own log-probabilities are what is stored.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    r"""How the actions of a recording are chosen.

    The default draws from the teacher's own probabilities. With ``teacher_share`` below 1 a second
    policy, the player, takes the other decisions: 0 visits the player's own states (on-policy),
    anything between is the mixture :math:`\beta\,\pi^* + (1 - \beta)\,\hat\pi` of DAgger.

    Args:
        temperature: Actions are drawn from probabilities proportional to :math:`p^{1/T}`, whoever
            acts; above 1 the play is more varied, below 1 closer to the likeliest action.
        epsilon: Share of the decisions that are replaced by an action drawn evenly from all.
        greedy: Whether the likeliest action is taken instead of a drawn one.
        teacher_share: Probability, drawn anew for every decision, that the teacher acts.

    Raises:
        ValueError: If a number is out of range, or a temperature is given to a greedy policy.

    Source:
        Ross, Gordon and Bagnell 2011, A reduction of imitation learning and structured prediction
        to no-regret online learning, algorithm 3.1.
    """

    temperature: float = 1.0
    epsilon: float = 0.0
    greedy: bool = False
    teacher_share: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.temperature < math.inf):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        for name in ("epsilon", "teacher_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.greedy and self.temperature != 1.0:
            raise ValueError(
                f"temperature must be 1 for a greedy policy, got {self.temperature}: the likeliest "
                "action is the same at every temperature"
            )

    @property
    def needs_player(self) -> bool:
        """Whether somebody else than the teacher acts."""
        return self.teacher_share < 1.0

    def check_player(self, player: object | None) -> None:
        """Refuse a player that never acts, and a share that nobody takes.

        Args:
            player: The second policy, or None.

        Raises:
            ValueError: If there is one without the other.
        """
        if self.needs_player != (player is not None):
            raise ValueError(
                "player must be given exactly where teacher_share is below 1, got "
                f"{'no player' if player is None else 'a player'} and "
                f"teacher_share={self.teacher_share}"
            )

    def identity(self) -> dict[str, Any]:
        """Say what decides the actions.

        Returns:
            The flag ``greedy``; the other fields only where they are not the default, so that
            recordings which know nothing of them keep their identity.
        """
        fields = asdict(self)
        greedy = fields.pop("greedy")
        plain = self == Behavior(greedy=greedy)
        return {"greedy": greedy} if plain else {"greedy": greedy, "behavior": fields}


def decide(
    behavior: Behavior,
    teacher: Float[np.ndarray, "env actions"],
    player: Float[np.ndarray, "env actions"] | None,
    rng: np.random.Generator,
) -> Int[np.ndarray, " env"]:
    """Choose one action for every game.

    Actions are drawn by the Gumbel trick, see :func:`~lightning_sobolev.atari.choose`. All draws
    are made, in a fixed order, whether they are needed or not: behaviors that differ in one number
    share the luck of the others.

    Args:
        behavior: How to choose.
        teacher: The teacher's log-probabilities.
        player: The player's, where there is one.
        rng: Source of all draws.

    Returns:
        Numbers of the actions.
    """
    num_envs, num_actions = teacher.shape
    gumbel = rng.gumbel(size=teacher.shape)
    acts, strays = rng.random((2, num_envs))
    anything = rng.integers(num_actions, size=num_envs)
    scores = teacher
    if player is not None:
        scores = np.where((acts < behavior.teacher_share)[:, None], teacher, player)
    if not behavior.greedy:
        scores = scores / behavior.temperature + gumbel
    return np.where(strays < behavior.epsilon, anything, scores.argmax(axis=-1))
