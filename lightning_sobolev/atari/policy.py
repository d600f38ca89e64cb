"""A network as a player: log-probabilities of its actions, and who takes which of them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._checks import require, require_positive
from lightning_sobolev.atari.networks import Logits, Stacks, scale_pixels


def log_probabilities(
    network: nn.Module,
    stacks: UInt8[np.ndarray, "batch stack height width"],
    *,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "batch actions"]:
    """Ask a network, in eval mode and on a device, for log-probabilities; no graph is recorded."""
    with torch.inference_mode():
        logits = network(scale_pixels(torch.as_tensor(stacks).to(device)))
        is_tensor = isinstance(logits, Tensor)
        require(is_tensor, "answers of network", "a tensor", type(logits).__name__)
        if logits.ndim != 2 or logits.shape[0] != stacks.shape[0]:
            raise ValueError(
                f"network must answer [{stacks.shape[0]}, actions], got {list(logits.shape)}"
            )
        return np.asarray(torch.log_softmax(logits.float(), dim=-1).cpu().numpy())


def choose(
    log_probs: Float[np.ndarray, "batch actions"], rng: np.random.Generator | None
) -> Int[np.ndarray, " batch"]:
    """Sample one action per row, or take the greedy one where there is no source of the draw."""
    # argmax of log p + Gumbel noise is distributed as p: Maddison et al. 2014, A* sampling
    scores = log_probs if rng is None else log_probs + rng.gumbel(size=log_probs.shape)
    return np.asarray(scores.argmax(axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    r"""Who acts while the teacher answers, and how actions are chosen.

    The default samples from the teacher's own probabilities. With ``beta`` below 1 a second policy,
    the player, takes the other decisions: 0 gives the player's own states (on-policy), anything
    between is the mixture :math:`\beta\,\pi^* + (1 - \beta)\,\hat\pi` of DAgger. Whoever acts, the
    teacher answers every state.

    Args:
        temperature: Actions are sampled from probabilities proportional to :math:`p^{1/T}`, whoever
            acts; above 1 the play is more varied, below 1 closer to the greedy action.
        epsilon: Share of the decisions that are replaced by an action drawn evenly from all.
        greedy: Whether the greedy action is taken instead of a sampled one.
        beta: Probability, drawn anew for every decision, that the teacher acts.
    """

    temperature: float = 1.0
    epsilon: float = 0.0
    greedy: bool = False
    beta: float = 1.0

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)
        for name, share in (("epsilon", self.epsilon), ("beta", self.beta)):
            is_share = isinstance(share, int | float) and 0.0 <= share <= 1.0
            require(is_share, name, "in [0, 1]", share)
        if self.greedy and self.temperature != 1.0:
            text = f"temperature must be 1 for a greedy policy, got {self.temperature}"
            raise ValueError(f"{text}: the greedy action is the same at every temperature")

    def check_player(self, player: object | None) -> None:
        """Refuse a player that never acts, and decisions that nobody takes."""
        if (self.beta < 1.0) != (player is not None):
            got = f"{'no' if player is None else 'a'} player and beta={self.beta}"
            raise ValueError(f"player must be given exactly where beta is below 1, got {got}")


def decide(
    behavior: Behavior,
    teacher: Float[np.ndarray, "env actions"],
    player: Float[np.ndarray, "env actions"] | None,
    rng: np.random.Generator,
) -> Int[np.ndarray, " env"]:
    """Choose one action for every game by the log-probabilities of teacher and player."""
    # all draws are made, needed or not: behaviors that differ in one number share their luck
    num_envs, num_actions = teacher.shape
    gumbel = rng.gumbel(size=teacher.shape)
    acts, strays = rng.random((2, num_envs))
    anything = rng.integers(num_actions, size=num_envs)
    scores = teacher
    if player is not None:
        scores = np.where((acts < behavior.beta)[:, None], teacher, player)
    if not behavior.greedy:
        scores = scores / behavior.temperature + gumbel
    return np.where(strays < behavior.epsilon, anything, scores.argmax(axis=-1))


class ModulePolicy(nn.Module):
    r"""A module :math:`g` that somebody wrote for other inputs: :math:`x \mapsto g(s\,x)`.

    Derivatives are with respect to x in 0..1, whatever :math:`g` was trained on. The factor is part
    of the state: a recording made with another one is not mistaken for this one's.

    Args:
        module: Maps ``[batch, stack, height, width]`` to logits ``[batch, actions]``; of a tuple or
            mapping that it returns, the first floating-point tensor is taken.
        input_scale: Factor :math:`s`: 1 where the module takes pixels in 0..1, 255 where it takes
            0..255, also if it then divides by 255 itself.
    """

    input_scale: Tensor

    def __init__(self, module: nn.Module, input_scale: float = 1.0) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        require_positive("input_scale", input_scale)
        self.module = module
        self.register_buffer("input_scale", torch.tensor(float(input_scale)))

    def forward(self, x: Stacks) -> Logits:
        """Return logits of the actions; pixels are in 0..1, the newest frame last."""
        answer = self.module(x * self.input_scale.to(x.dtype))
        path = _paths.first_float(answer)
        if path is None:
            raise ValueError(f"module must return logits, got {_paths.describe(answer)}")
        logits: Tensor = _paths.get(answer, path, "module's output")
        return logits
