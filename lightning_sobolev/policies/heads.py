r"""What a network's outputs mean: logits of a choice, or a Gaussian over a vector of actions.

Note [units of a Gaussian]: two Gaussians close to each other, the teacher's with mean :math:`\mu`
and deviation :math:`\sigma`, diverge by
:math:`\sum_i \Delta\mu_i^2 / (2 \sigma_i^2) + \Delta(\log \sigma_i)^2` to second order. So
derivatives are compared of :math:`(\mu / \sigma, \sqrt 2 \log \sigma)` with the teacher's
:math:`\sigma` held fixed: half the squared difference of two outputs is then the divergence, and no
action counts more because its bounds are wider. That needs a :math:`\sigma` that is the same in
every state, as PPO and A2C have it; of others the bare outputs are compared.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev.atari.policy import Behavior, choose, decide
from lightning_sobolev.functional.discrepancies import POLICY_LOSSES, check_shapes, kl
from lightning_sobolev.policies.environments import EnvSettings, spaces_of

Answers = Float[Tensor, "batch answers"]
"""Log-probabilities, or means followed by logarithms of deviations."""


@dataclass(frozen=True)
class Head:
    """How outputs become a policy, and how two policies are compared."""

    @classmethod
    def for_env(cls, settings: EnvSettings, teacher: nn.Module | None = None) -> "Head":
        """Return the head that an environment's actions need.

        Args:
            settings: What is played.
            teacher: Whose deviations are the units of a Gaussian's ``match``, if they are the same
                in all states; see Note [units of a Gaussian].
        """
        actions = spaces_of(settings).actions
        if not isinstance(actions, Box):
            return DiscreteHead(int(actions.n), int(actions.start))
        low, high = (tuple(map(float, end)) for end in (actions.low, actions.high))
        head = GaussianHead(low, high, settings.squash)
        log_std = getattr(teacher, "log_std", None)
        if not isinstance(log_std, Tensor) or log_std.shape != (len(low),):
            return head
        return replace(head, units=tuple(log_std.exp().tolist()))

    @property
    @abstractmethod
    def num_outputs(self) -> int | None:
        """Outputs of a network; None where any number is right."""

    @property
    @abstractmethod
    def match(self) -> Callable[[Tensor], Tensor] | str:
        """The function of the outputs whose derivatives are compared, as a spec takes it."""

    @property
    @abstractmethod
    def difference(self) -> str:
        """What :meth:`disagreement` is called among measured numbers."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Answers:
        """Return what is stored and compared: the policy's parameters, in float32 at least."""

    @abstractmethod
    def divergence(self, student: Answers, teacher: Answers) -> Float[Tensor, " batch"]:
        """Return KL(teacher || student) of every row, in nats."""

    @abstractmethod
    def disagreement(self, student: Answers, teacher: Answers) -> Float[Tensor, " batch"]:
        """Return how far apart the greedy actions are."""

    @abstractmethod
    def loss(self, name: str) -> Callable[[Answers, Answers], Float[Tensor, " batch"]]:
        """Return ``kl``, ``reverse_kl`` or ``cross_entropy`` of student and teacher."""

    @abstractmethod
    def choose(self, answers: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Draw a decision per row, or take the greedy one where there is no source of the draw."""

    @abstractmethod
    def decide(
        self,
        behavior: Behavior,
        teacher: np.ndarray,
        player: np.ndarray | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Take a decision in every environment by the answers of teacher and player."""

    @abstractmethod
    def actions(self, decisions: np.ndarray) -> np.ndarray:
        """Return what the environment is given for decisions."""

    def compared(self, outputs: Tensor) -> Tensor:
        """Apply ``match``."""
        match = self.match
        return self.answers(outputs) if isinstance(match, str) else match(outputs)

    def check(self, num_outputs: int, who: str) -> None:
        """Refuse a network, called ``who``, whose outputs are not these.

        Raises:
            ValueError: If their number is another one.
        """
        if self.num_outputs not in (None, num_outputs):
            raise ValueError(
                f"{who} must have {self.num_outputs} outputs ({self}), got {num_outputs}"
            )


@dataclass(frozen=True)
class DiscreteHead(Head):
    """Logits of a choice.

    Args:
        num_actions: Actions to choose from; None takes as many as a network has outputs.
        start: Number of the first action in the environment.
    """

    num_actions: int | None = None
    start: int = 0

    @property
    def num_outputs(self) -> int | None:
        """One logit an action."""
        return self.num_actions

    @property
    def match(self) -> str:
        """The log-probabilities."""
        return "log_softmax"

    @property
    def difference(self) -> str:
        """Shares of states."""
        return "disagreement"

    def answers(self, outputs: Tensor) -> Answers:
        """Return log-probabilities."""
        # In float32 at least: under CPU autocast the probabilities would not sum to one, and the
        # logits drift until their differences are lost (KL 0.002 after 6,000 steps, 0.03 after
        # 10,000).
        return torch.log_softmax(_wide(outputs), dim=-1)

    def divergence(self, student: Answers, teacher: Answers) -> Float[Tensor, " batch"]:
        """Return the sum over actions."""
        return kl(student, teacher)

    def disagreement(self, student: Answers, teacher: Answers) -> Float[Tensor, " batch"]:
        """Return 1 where the greedy actions differ."""
        return (student.argmax(-1) != teacher.argmax(-1)).to(student.dtype)

    def loss(self, name: str) -> Callable[[Answers, Answers], Float[Tensor, " batch"]]:
        """Return one of ``POLICY_LOSSES``."""
        require(name in POLICY_LOSSES, "loss", f"one of {tuple(POLICY_LOSSES)}", name)
        return POLICY_LOSSES[name]

    def choose(self, answers: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Draw an action per row."""
        return choose(answers, rng)

    def decide(
        self,
        behavior: Behavior,
        teacher: np.ndarray,
        player: np.ndarray | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Take a decision as in a game."""
        return decide(behavior, teacher, player, rng)

    def actions(self, decisions: np.ndarray) -> np.ndarray:
        """Count from the first action's number."""
        return decisions.astype(np.int64) + self.start


@dataclass(frozen=True)
class GaussianHead(Head):
    r"""Means of a Gaussian with independent components, then logarithms of its deviations.

    Divergences are those before the bounds are applied: clipping is the environment's, and the
    hyperbolic tangent, which has an inverse, changes none.

    Args:
        low: Least value of each action.
        high: Largest value of each action.
        squash: Whether actions are :math:`\tanh` of what is drawn, scaled to the bounds; else what
            is drawn is clipped to them.
        units: Deviations that ``match`` measures means in; None compares the bare outputs.

    Raises:
        ValueError: If the numbers of bounds and units differ.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    squash: bool = False
    units: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        sizes = [len(self.low), len(self.high), len(self.units or self.low)]
        require(len(set(sizes)) == 1, "low, high and units", "of one length", sizes)

    @property
    def num_outputs(self) -> int:
        """Two an action."""
        return 2 * len(self.low)

    @property
    def match(self) -> Callable[[Tensor], Tensor] | str:
        """Means and deviations in the divergence's own units; see Note [units of a Gaussian]."""
        return "identity" if self.units is None else _InUnits(self.units)

    @property
    def difference(self) -> str:
        """Distances in the teacher's deviations."""
        return "distance"

    def answers(self, outputs: Tensor) -> Answers:
        """Return the outputs."""
        return _wide(outputs)

    def divergence(self, student: Answers, teacher: Answers) -> Float[Tensor, " batch"]:
        """Return the closed form, summed over actions."""
        check_shapes(student, teacher, "teacher")
        (mean, log_std), (aim, log_aim) = student.chunk(2, -1), teacher.chunk(2, -1)
        ratio = 2 * (log_aim - log_std)
        # log(s/t) + (t^2 + d^2) / (2 s^2) - 1/2, which is exact where the deviations are equal
        spread = torch.expm1(ratio) - ratio
        return (spread + ((mean - aim) * (-log_std).exp()).square()).sum(-1) / 2

    def disagreement(self, student: Answers, teacher: Answers) -> Float[Tensor, " batch"]:
        """Return the distance of the means in the teacher's deviations."""
        (mean, _), (aim, log_aim) = student.chunk(2, -1), teacher.chunk(2, -1)
        return ((mean - aim) * (-log_aim).exp()).square().sum(-1).sqrt()

    def loss(self, name: str) -> Callable[[Answers, Answers], Float[Tensor, " batch"]]:
        """Return a divergence; ``cross_entropy`` adds the teacher's entropy."""
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "kl": self.divergence,
            "reverse_kl": lambda student, teacher: self.divergence(teacher, student),
            "cross_entropy": lambda s, t: self.divergence(s, t) + _entropy(t),
        }
        require(name in losses, "loss", f"one of {tuple(losses)}", name)
        return losses[name]

    def choose(self, answers: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Draw a vector per row."""
        mean, log_std = np.split(answers, 2, axis=-1)
        return mean if rng is None else _drawn(mean, log_std, rng.standard_normal(mean.shape))

    def decide(
        self,
        behavior: Behavior,
        teacher: np.ndarray,
        player: np.ndarray | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        r"""Take a decision; at temperature T deviations are :math:`\sqrt T` times as large."""
        # all draws are made, needed or not: behaviors that differ in one number share their luck
        num_envs, dims = len(teacher), len(self.low)
        noise = rng.standard_normal((num_envs, dims))
        acts, strays = rng.random((2, num_envs))
        evenly = rng.random((num_envs, dims))
        answers = teacher
        if player is not None:
            answers = np.where((acts < behavior.beta)[:, None], teacher, player)
        mean, log_std = np.split(answers, 2, axis=-1)
        scale = 0.0 if behavior.greedy else math.sqrt(behavior.temperature)
        drawn = _drawn(mean, log_std, scale * noise)
        if behavior.epsilon == 0.0:
            return drawn
        return np.where((strays < behavior.epsilon)[:, None], self._anything(evenly), drawn)

    def _anything(self, evenly: np.ndarray) -> np.ndarray:
        if not np.isfinite([*self.low, *self.high]).all():
            text = "epsilon must be 0 where actions have no bounds to draw evenly from"
            raise ValueError(f"{text}, got {self}")
        if self.squash:
            inner = np.clip(2 * evenly - 1, -0.999999, 0.999999)
            return np.asarray(np.arctanh(inner), np.float32)
        low, high = self._bounds()
        return np.asarray(low + (high - low) * evenly.astype(np.float32))

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    def actions(self, decisions: np.ndarray) -> np.ndarray:
        """Bring what was drawn within the bounds."""
        low, high = self._bounds()
        if self.squash:
            return np.asarray(low + (high - low) * (np.tanh(decisions).astype(np.float32) + 1) / 2)
        return np.asarray(np.clip(decisions.astype(np.float32), low, high))


@dataclass(frozen=True)
class _InUnits:
    units: Sequence[float]

    def __call__(self, outputs: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        return torch.cat([mean / mean.new_tensor(self.units), math.sqrt(2) * log_std], -1)


def output_map(head: Head) -> Any:
    """Return a head's ``match``, for ``SobolevSpec(on=...)`` in a configuration."""
    return head.match


def _wide(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _drawn(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.asarray(mean + np.exp(log_std) * noise, np.float32)


def _entropy(answers: Tensor) -> Tensor:
    log_std = answers.chunk(2, -1)[1]
    return (log_std + (1 + math.log(2 * math.pi)) / 2).sum(-1)
