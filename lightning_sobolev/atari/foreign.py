"""Policies that other people trained, as this package's Nature network.

One convention holds for everything that is loaded: the network takes pixels in 0..1 and every
derivative is with respect to those. Libraries that divide bytes by 255 themselves agree with it; a
network that was trained on 0..255 is brought to it by scaling its first layer, so that its
derivatives are 255 times those with respect to bytes and can be compared with everybody else's.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_sobolev._files import sha256_of
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.hub import PREFIX, HubFile
from lightning_sobolev.atari.networks import NatureCNN
from lightning_sobolev.atari.translation import Layout, recognize, translate
from lightning_sobolev.atari.weight_files import read_weights

Q_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True)
class ForeignAgent:
    r"""Where a policy comes from and how its numbers are to be read.

    A head of Q-values becomes the policy :math:`\mathrm{softmax}(Q / T)`; at :math:`T = 1` the
    network's outputs are the Q-values themselves.

    Args:
        source: A ``.zip`` of stable-baselines3 (PPO, A2C or DQN with ``CnnPolicy``), a state dict
            of CleanRL (PPO, DQN), a ``.safetensors`` file of either or of this package, or any of
            them on the Hugging Face Hub as ``hf://ORGANIZATION/REPOSITORY/FILE@REVISION``.
        environment: What it plays, noted in the card; its stack and picture size must be the
            network's. None takes four pictures of 84 x 84 and notes nothing.
        num_actions: Actions it must have; None takes what the file has.
        input_scale: Factor from x in 0..1 to what the first layer was trained on: 1 where the
            library divides bytes by 255, as both do by default; 255 where it was fed with bytes.
        temperature: :math:`T` of a head of Q-values; None takes 0.01. Logits have none.
        sha256: Digest that the file must have; None only notes it. Needed for a revision that is
            not a commit.

    Raises:
        ValueError: If a number is not positive or a revision is not fixed.

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
        for name in ("input_scale", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")
        hub_file = self.hub_file
        if hub_file is not None and not hub_file.is_commit and self.sha256 is None:
            raise ValueError(
                "the revision of a file on the hub must be a commit (40 hexadecimal digits), or "
                f"its sha256 must be given, got {hub_file.revision!r}: a branch or tag may move"
            )

    @property
    def hub_file(self) -> HubFile | None:
        """The file on the hub, or None for a file on this machine."""
        source = str(self.source)
        return HubFile.parse(source) if source.startswith(PREFIX) else None

    def fetch(self) -> tuple[Path, str]:
        """Find the file, fetching it if it is elsewhere.

        Returns:
            Its path and its sha256.

        Raises:
            ValueError: If it cannot be had or is not the one that is asked for.
        """
        path = Path(self.source) if self.hub_file is None else self.hub_file.download()
        if not path.is_file():
            raise ValueError(f"source must be an existing file, got {str(path)!r}")
        found = sha256_of(path)
        if self.sha256 is not None and found != self.sha256.lower():
            raise ValueError(f"{self.source} must have the sha256 {self.sha256}, got {found}")
        return path, found


def load_foreign(agent: ForeignAgent) -> tuple[NatureCNN, dict[str, Any]]:
    """Read somebody else's policy; nothing is unpickled.

    Args:
        agent: Where it is and how its numbers are to be read.

    Returns:
        The network in float32 and eval mode, mapping stacks in 0..1 to logits, and a card that
        says where it came from and what was done to it.

    Raises:
        ValueError: If the file is damaged, holds another network or another number of actions, or
            a temperature is given for logits.
    """
    path, digest = agent.fetch()
    name = str(agent.source)
    weights = read_weights(path)
    layout = recognize(weights, name)
    network = _empty(weights[layout.names["head.bias"]].numel(), agent, name)
    network.load_state_dict(translate(weights, layout, network, name))
    scale_input(network, agent.input_scale)
    temperature = _temperature(agent, layout, name)
    with torch.no_grad():
        network.head.weight.div_(temperature)
        network.head.bias.div_(temperature)
    return network.eval(), _card(agent, layout, network, digest)


def scale_input(network: nn.Module, input_scale: float) -> None:
    """Make a network that takes ``input_scale * x`` one that takes x.

    Args:
        network: One of this package's; its first convolution is changed in place.
        input_scale: The factor.
    """
    with torch.no_grad():
        network.get_parameter("body.0.weight").mul_(input_scale)


def _empty(num_outputs: int, agent: ForeignAgent, name: str) -> NatureCNN:
    if agent.num_actions not in (None, num_outputs):
        raise ValueError(
            f"{name} must have num_actions={agent.num_actions} outputs, got {num_outputs}: it was "
            "trained on another game or another set of actions"
        )
    settings = agent.environment or AtariSettings()
    return NatureCNN(
        num_outputs,
        stack_num=settings.stack_num,
        height=settings.img_height,
        width=settings.img_width,
    )


def _temperature(agent: ForeignAgent, layout: Layout, name: str) -> float:
    if layout.is_q_values:
        return Q_TEMPERATURE if agent.temperature is None else agent.temperature
    if agent.temperature is not None:
        raise ValueError(
            f"temperature must be None for {name}, whose head gives logits ({layout.name}), "
            f"got {agent.temperature}"
        )
    return 1.0


def _card(agent: ForeignAgent, layout: Layout, network: NatureCNN, digest: str) -> dict[str, Any]:
    temperature = _temperature(agent, layout, str(agent.source))
    output = f"Q-values divided by {temperature:g}" if layout.is_q_values else "logits"
    card: dict[str, Any] = {
        "network": "NatureCNN",
        "num_actions": network.num_actions,
        "input": "float32 in 0..1 (bytes / 255), the newest picture last",
        "input_scale": 1.0,
        "output": f"{output}, of which the softmax is the policy",
        "source": {
            "file": str(agent.source),
            "sha256": digest,
            "layout": layout.name,
            "input_scale": agent.input_scale,
            "temperature": temperature if layout.is_q_values else None,
            "pictures": layout.pictures,
        },
    }
    if agent.environment is not None:
        card["environment"] = asdict(agent.environment)
    return card
