"""Policies that other people trained, as this package's Nature network.

One convention holds for everything that is loaded: the network takes pixels in 0..1 and every
derivative is with respect to those. Libraries that divide bytes by 255 themselves agree with it; a
network that was trained on 0..255 is brought to it by scaling its first layer, so that its
derivatives are 255 times those with respect to bytes and can be compared with everybody else's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_sobolev._checks import require, require_positive
from lightning_sobolev._files import sha256_of
from lightning_sobolev.atari.agents import hub
from lightning_sobolev.atari.agents.reading import read_weights
from lightning_sobolev.atari.environments import AtariSettings, num_actions
from lightning_sobolev.atari.networks import NatureCNN, PixelPolicy

Q_TEMPERATURE = 0.01

_OURS = ("body.0", "body.2", "body.4", "body.7", "head")
_AREA = "gray, then resized to 84 x 84 by area; black before the first frame of an episode"
_COLOR = "resized to 84 x 84 by area, then gray; the first frame of an episode fills the stack"


class Layout(NamedTuple):
    """How a library names the layers of the Nature network, and how it makes frames."""

    name: str
    layers: tuple[str, str, str, str, str]  # four of the body, and the head
    others: tuple[str, ...] = ()  # beginnings of what is stored beside them: critics, targets
    is_q_values: bool = False
    frames: str = ""

    @property
    def names(self) -> dict[str, str]:
        """This package's name of every parameter, and the library's."""
        return {
            f"{ours}.{part}": f"{theirs}.{part}"
            for ours, theirs in zip(_OURS, self.layers, strict=True)
            for part in ("weight", "bias")
        }


def _sb3(prefix: str, head: str) -> tuple[str, str, str, str, str]:
    return f"{prefix}.cnn.0", f"{prefix}.cnn.2", f"{prefix}.cnn.4", f"{prefix}.linear.0", head


_CLEANRL = ("network.0", "network.2", "network.4", "network.7")
_CRITIC = ("mlp_extractor.value_net.", "value_net.")

LAYOUTS = (
    # the actor's own copy comes first: with separate extractors it is the one that acts
    Layout(
        "stable-baselines3 PPO or A2C",
        _sb3("pi_features_extractor", "action_net"),
        others=("features_extractor.", "vf_features_extractor.", *_CRITIC),
        frames=_AREA,
    ),
    Layout(
        "stable-baselines3 PPO or A2C, one extractor",
        _sb3("features_extractor", "action_net"),
        _CRITIC,
        frames=_AREA,
    ),
    Layout(
        "stable-baselines3 DQN",
        _sb3("q_net.features_extractor", "q_net.q_net.0"),
        others=("q_net_target.",),
        is_q_values=True,
        frames=_AREA,
    ),
    Layout("CleanRL PPO", (*_CLEANRL, "actor"), others=("critic.",), frames=_COLOR),
    Layout("CleanRL DQN", (*_CLEANRL, "network.9"), is_q_values=True, frames=_COLOR),
    Layout("lightning_sobolev", _OURS),
)


@dataclass(frozen=True, slots=True)
class ForeignAgent:
    r"""Where a policy comes from and how its numbers are to be read.

    A head of Q-values becomes the policy :math:`\mathrm{softmax}(Q / T)`; at :math:`T = 1` the
    network's outputs are the Q-values themselves.

    Args:
        source: A ``.zip`` of stable-baselines3 (PPO, A2C or DQN with ``CnnPolicy``), a state dict
            of CleanRL (PPO, DQN), a ``.safetensors`` file of either or of this package, or any of
            them on the Hugging Face Hub as ``hf://ORGANIZATION/REPOSITORY/FILE@REVISION``.
        environment: What it plays, noted in the card; its stack, frame size and number of actions
            must be the network's. None takes four frames of 84 x 84 and notes nothing.
        num_actions: Actions it must have; None takes those of ``environment`` or, without one, what
            the file has.
        input_scale: Factor from x in 0..1 to what the first layer was trained on: 1 where the
            library divides bytes by 255, as both do by default; 255 where it was fed with bytes.
        temperature: :math:`T` of a head of Q-values; None takes 0.01. Logits have none.
        sha256: Digest that the file must have; None only notes it. Needed for a revision that is
            not a commit.

    Source:
        Rusu et al. 2015, Policy distillation (arXiv:1511.06295), for the softmax of Q-values at a
        temperature of 0.01.
    """

    source: str | Path
    environment: AtariSettings | None = None
    num_actions: int | None = None
    input_scale: float = 1.0
    temperature: float | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        is_path = isinstance(self.source, str | Path)
        require(is_path, "source", "a file or hf://...", self.source)
        require_positive("input_scale", self.input_scale)
        if self.temperature is not None:
            require_positive("temperature", self.temperature)
        hub_file = self.hub_file
        if hub_file is not None and not hub_file.is_commit and self.sha256 is None:
            raise ValueError(
                "the revision of a file on the hub must be a commit (40 hexadecimal digits), or "
                f"its sha256 must be given, got {hub_file.revision!r}: a branch or tag may move"
            )

    @property
    def hub_file(self) -> hub.HubFile | None:
        """The file on the hub, or None for a file on this machine."""
        source = str(self.source)
        return hub.parse(source) if source.startswith(hub.PREFIX) else None

    def fetch(self) -> tuple[Path, str]:
        """Return the file's path and sha256, fetching it if it is elsewhere."""
        path = Path(self.source) if self.hub_file is None else hub.download(self.hub_file)
        require(path.is_file(), "source", "an existing file", str(path))
        found = sha256_of(path)
        if self.sha256 is not None and found != self.sha256.lower():
            raise ValueError(f"{self.source} must have the sha256 {self.sha256}, got {found}")
        return path, found

    def check_num_actions(self, found: int) -> None:
        """Refuse a policy of another number of actions than the one that is asked for."""
        wanted = self.num_actions
        if wanted is None and self.environment is not None:
            wanted = num_actions(self.environment)
        if wanted not in (None, found):
            text = f"{self.source} must have num_actions={wanted} outputs, got {found}"
            raise ValueError(f"{text}: it was trained on another game or another set of actions")


def load_foreign(agent: ForeignAgent) -> tuple[PixelPolicy, dict[str, Any]]:
    """Read somebody else's policy, its derivatives with respect to 0..1, and describe it."""
    path, digest = agent.fetch()
    name = str(agent.source)
    weights = read_weights(path)
    layout = _recognize(weights, name)
    if agent.temperature is not None and not layout.is_q_values:
        text = f"temperature must be None for {name}, whose head gives logits ({layout.name})"
        raise ValueError(f"{text}, got {agent.temperature}")
    outputs = weights[layout.names["head.bias"]].numel()
    agent.check_num_actions(outputs)
    settings = agent.environment or AtariSettings()
    network = filled(NatureCNN, outputs, settings, weights, name, names=layout.names)
    scale_input(network, agent.input_scale)
    temperature, output = None, "logits"
    if layout.is_q_values:
        temperature = Q_TEMPERATURE if agent.temperature is None else agent.temperature
        output = f"Q-values divided by {temperature:g}"
        with torch.no_grad():
            for parameter in network.head.parameters():
                parameter.div_(temperature)
    source = {"file": name, "sha256": digest, "layout": layout.name, "frames": layout.frames}
    card: dict[str, Any] = {
        "network": "NatureCNN",
        "num_actions": outputs,
        "input": "float32 in 0..1 (bytes / 255), the newest frame last",
        "input_scale": 1.0,
        "output": f"{output}, of which the softmax is the policy",
        "source": {**source, "input_scale": agent.input_scale, "temperature": temperature},
    }
    if agent.environment is not None:
        card["environment"] = asdict(agent.environment)
    return network.eval(), card


def _recognize(weights: Mapping[str, Tensor], name: str) -> Layout:
    for layout in LAYOUTS:
        needed = set(layout.names.values())
        if not needed <= set(weights):
            continue
        extra = [key for key in weights if key not in needed and not key.startswith(layout.others)]
        if extra:
            text = f"{name} must be a Nature network and nothing more, as {layout.name} stores it"
            raise ValueError(f"{text}, got further tensors {extra[:4]}")
        return layout
    known = "; ".join(layout.name for layout in LAYOUTS)
    text = "a Nature network (three convolutions, one hidden layer) as one of these stores it"
    raise ValueError(f"{name} must hold {text}: {known}; got tensors {list(weights)[:6]}")


def filled(
    kind: type[PixelPolicy],
    num_actions: int,
    settings: AtariSettings,
    weights: Mapping[str, Tensor],
    name: str,
    *,
    names: Mapping[str, str] | None = None,
) -> PixelPolicy:
    """Build a network with the weights of a file, called ``name``; refuse others before that."""
    try:
        with torch.device("meta"):
            empty = kind.showing(settings, num_actions).state_dict()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be a network for {num_actions} actions and stacks of "
            f"{settings.stack_num} x {settings.img_height} x {settings.img_width} ({reason})"
        ) from error
    names = names or {key: key for key in empty}  # the file's name of every parameter
    if missing := [key for key in names.values() if key not in weights]:
        raise ValueError(f"{name} must hold the tensors {missing[:4]}, got {list(weights)[:6]}")
    for ours, theirs in names.items():
        _check_weight(weights[theirs], list(empty[ours].shape), f"{theirs} in {name}")
    network = kind.showing(settings, num_actions)
    network.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    return network


def _check_weight(weight: Tensor, shape: list[int], name: str) -> None:
    if list(weight.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {list(weight.shape)}")
    is_dense = weight.layout == torch.strided and not weight.is_meta
    if not is_dense or not weight.is_floating_point():
        got = f"{weight.dtype}, {weight.layout} on {weight.device}"
        raise ValueError(f"{name} must be a dense array of real numbers, got {got}")
    if (size := weight.untyped_storage().nbytes()) < weight.nbytes:
        raise ValueError(f"{name} must hold all of its {weight.numel()} numbers, got {size} bytes")
    if not weight.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def scale_input(network: PixelPolicy, input_scale: float) -> None:
    """Make a network that takes ``input_scale * x`` one that takes x, in place."""
    with torch.no_grad():
        network.get_parameter("body.0.weight").mul_(input_scale)
