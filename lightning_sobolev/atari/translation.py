"""From the names that other libraries give the layers of the Nature network to this package's."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_sobolev.atari.networks import NatureCNN

_BODY = ("body.0", "body.2", "body.4", "body.7")
_AREA = "grey, then resized to 84 x 84 by area; black before the first picture of an episode"
_COLOR = (
    "resized to 84 x 84 by area, then grey; the first picture of an episode fills the whole stack"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a library names the layers of the Nature network.

    Args:
        name: What the layout is called in cards and messages.
        layers: The library's names of the four layers of the body and of the head.
        others: Beginnings of the names of what is stored beside them: critics, targets, copies.
        is_q_values: Whether the head gives values of actions instead of logits.
        pictures: How the library makes pictures, where it differs between libraries.
    """

    name: str
    layers: tuple[str, str, str, str, str]
    others: tuple[str, ...] = ()
    is_q_values: bool = False
    pictures: str = ""

    @property
    def names(self) -> dict[str, str]:
        """This package's name of every parameter, and the library's."""
        pairs = zip((*_BODY, "head"), self.layers, strict=True)
        return {
            f"{ours}.{part}": f"{theirs}.{part}"
            for ours, theirs in pairs
            for part in ("weight", "bias")
        }


def _extractor(prefix: str, head: str) -> tuple[str, str, str, str, str]:
    convs = (f"{prefix}.cnn.0", f"{prefix}.cnn.2", f"{prefix}.cnn.4")
    return (*convs, f"{prefix}.linear.0", head)


_CLEANRL = ("network.0", "network.2", "network.4", "network.7")

_CRITIC = ("mlp_extractor.value_net.", "value_net.")

LAYOUTS = (
    # the actor's own copy comes first: with separate extractors it is the one that acts
    Layout(
        "stable-baselines3 PPO or A2C",
        _extractor("pi_features_extractor", "action_net"),
        others=("features_extractor.", "vf_features_extractor.", *_CRITIC),
        pictures=_AREA,
    ),
    Layout(
        "stable-baselines3 PPO or A2C, one extractor",
        _extractor("features_extractor", "action_net"),
        others=_CRITIC,
        pictures=_AREA,
    ),
    Layout(
        "stable-baselines3 DQN",
        _extractor("q_net.features_extractor", "q_net.q_net.0"),
        others=("q_net_target.",),
        is_q_values=True,
        pictures=_AREA,
    ),
    Layout("CleanRL PPO", (*_CLEANRL, "actor"), others=("critic.",), pictures=_COLOR),
    Layout("CleanRL DQN", (*_CLEANRL, "network.9"), is_q_values=True, pictures=_COLOR),
    Layout("lightning_sobolev", (*_BODY, "head")),
)


def recognize(weights: Mapping[str, Tensor], name: str) -> Layout:
    """Find the layout that explains every tensor of a file.

    Args:
        weights: The file's tensors.
        name: How messages call the file.

    Returns:
        The layout.

    Raises:
        ValueError: If layers are missing, or there are others that would change the output.
    """
    for layout in LAYOUTS:
        needed = set(layout.names.values())
        if not needed <= set(weights):
            continue
        extra = [key for key in weights if key not in needed and not key.startswith(layout.others)]
        if extra:
            raise ValueError(
                f"{name} must be a Nature network and nothing more, as {layout.name} stores it, "
                f"got further tensors {extra[:4]}"
            )
        return layout
    known = "; ".join(layout.name for layout in LAYOUTS)
    raise ValueError(
        f"{name} must hold a Nature network (three convolutions, one hidden layer) as one of these "
        f"stores it: {known}; got tensors {list(weights)[:6]}"
    )


def translate(
    weights: Mapping[str, Tensor], layout: Layout, network: NatureCNN, name: str
) -> dict[str, Tensor]:
    """Rename a file's tensors to a network's parameters.

    Args:
        weights: The file's tensors.
        layout: What they are called.
        network: The network that they shall fill; it is not changed.
        name: How messages call the file.

    Returns:
        A state dict of the network in float32, sharing no memory with ``weights``.

    Raises:
        ValueError: If a tensor has another shape than the network's or is not finite.
    """
    state = {}
    for ours, theirs in layout.names.items():
        expected, found = network.get_parameter(ours).shape, weights[theirs].shape
        if found != expected:
            raise ValueError(
                f"{theirs} in {name} must have shape {list(expected)} for {network.num_actions} "
                f"actions and stacks {list(network.in_shape)}, got {list(found)}"
            )
        state[ours] = weights[theirs].detach().float().clone()
        if not state[ours].isfinite().all():
            raise ValueError(f"{theirs} in {name} must be finite, got NaN or infinity")
    return state
