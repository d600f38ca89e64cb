"""A network as a player: log-probabilities of its actions, and one action drawn from them."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import nn

from lightning_sobolev.atari.networks import scale_pixels


def log_probabilities(
    network: nn.Module,
    stacks: UInt8[np.ndarray, "batch stack height width"],
    *,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "batch actions"]:
    """Evaluate a policy without recording a graph.

    Args:
        network: Maps scaled stacks to logits; put it in eval mode first.
        stacks: Pictures as bytes.
        device: Where the network is.

    Returns:
        Normalised log-probabilities in float32.

    Raises:
        ValueError: If the network's answer is not ``[batch, actions]``.
    """
    with torch.inference_mode():
        logits = network(scale_pixels(torch.as_tensor(stacks).to(device)))
        if logits.ndim != 2 or logits.shape[0] != stacks.shape[0]:
            raise ValueError(
                f"network must answer [{stacks.shape[0]}, actions], got {list(logits.shape)}"
            )
        answer: np.ndarray = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return answer


def choose(
    log_probs: Float[np.ndarray, "batch actions"], rng: np.random.Generator | None
) -> Int[np.ndarray, " batch"]:
    r"""Draw one action per row, or take the likeliest.

    Draws by the Gumbel trick: :math:`\arg\max_a \log p_a + g_a` is distributed as :math:`p`.

    Args:
        log_probs: Log-probabilities of the actions.
        rng: Source of the draw; None takes the likeliest action.

    Returns:
        Numbers of the actions.

    Source:
        Maddison, Tarlow and Minka 2014, A* sampling, section 2.
    """
    scores = log_probs if rng is None else log_probs + rng.gumbel(size=log_probs.shape)
    actions: np.ndarray = scores.argmax(axis=-1)
    return actions
