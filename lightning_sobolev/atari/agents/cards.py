"""Stored agents: weights as safetensors, and a card that says what they are and how good."""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev._files import read_json, sha256_of, whole, write_json
from lightning_sobolev.atari.agents.formats import ForeignAgent, filled, load_foreign, scale_input
from lightning_sobolev.atari.agents.hub import PREFIX
from lightning_sobolev.atari.agents.reading import read_weights
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.networks import NatureCNN, PixelPolicy, SmallCNN

NETWORKS: dict[str, type[PixelPolicy]] = {"NatureCNN": NatureCNN, "SmallCNN": SmallCNN}

Card = dict[str, Any]
Agent = str | Path | ForeignAgent
"""Name or file of an agent, or a closer description of one."""

_PACKAGED = Path(__file__).parent / "weights"
_NEEDED = ("network", "num_actions", "environment", "sha256")
_DIGEST = "card_sha256"


def agent_names() -> tuple[str, ...]:
    """Return the names of the agents that come with the package."""
    return tuple(sorted(path.stem for path in _PACKAGED.glob("*.safetensors")))


def load_agent(agent: Agent) -> tuple[nn.Module, Card]:
    """Load an agent's network and card; nothing is unpickled.

    Args:
        agent: Name of an agent of the package; path of a ``.safetensors`` file with its card (same
            name, ``.json``) beside it; any other file or hub id that :class:`ForeignAgent` reads;
            or a :class:`ForeignAgent`, which says more about it.

    Returns:
        The network in float32 and eval mode, mapping scaled stacks to logits, and the card of this
        network: weights that were stored for another scale of the input have been brought to 0..1.

    Raises:
        ValueError: If there is no such agent, or its card or weights are incomplete or damaged.
    """
    if isinstance(agent, ForeignAgent):
        return _load_described(agent)
    require(isinstance(agent, str | Path), "agent", "a name, a file or a ForeignAgent", agent)
    path = Path(agent) if Path(agent).suffix else _PACKAGED / f"{agent}.safetensors"
    if str(agent).startswith(PREFIX) or path.suffix != ".safetensors":
        return _load_described(ForeignAgent(agent))
    if not path.exists():
        known = f"one of {', '.join(agent_names())} or a .safetensors file"
        raise ValueError(f"agent must be {known}, got {str(agent)!r}")
    return _load_with_card(path)


def _load_described(agent: ForeignAgent) -> tuple[nn.Module, Card]:
    path, _ = agent.fetch()
    if path.suffix != ".safetensors" or not path.with_suffix(".json").exists():
        return load_foreign(agent)
    scale, temperature = agent.input_scale, agent.temperature
    if (scale, temperature) != (1.0, None):
        text = f"input_scale and temperature of {agent.source} are said by its card"
        raise ValueError(f"{text}, got {scale} and {temperature}: leave them out")
    network, card = _load_with_card(path)
    agent.check_num_actions(card["num_actions"])
    return network, card


def _load_with_card(path: Path) -> tuple[nn.Module, Card]:
    card = _read_card(path.with_suffix(".json"))
    if (found := sha256_of(path)) != card["sha256"]:
        text = f"{path} must have the sha256 of its card, {card['sha256']}, got {found}"
        raise ValueError(f"{text}: the file is damaged or belongs to another card")
    kind, settings = NETWORKS[card["network"]], AtariSettings(**card["environment"])
    network = filled(kind, card["num_actions"], settings, read_weights(path), str(path))
    scale_input(network, card["input_scale"])
    return network.eval(), {**card, "input_scale": 1.0}


def _read_card(path: Path) -> Card:
    card = read_json(path) or {}
    if missing := [key for key in _NEEDED if key not in card]:
        raise ValueError(f"{path} must be a card with {', '.join(_NEEDED)}, it lacks {missing}")
    # cards of earlier versions have none
    digest = card.pop(_DIGEST, None)
    if digest is not None and digest != _digest(card):
        raise ValueError(
            f"{path} must have the {_DIGEST} that it states, got another one: it is damaged or was "
            f"changed; where that was meant, leave {_DIGEST} out"
        )
    if (name := card["network"]) not in NETWORKS:
        raise ValueError(f"network in {path} must be one of {', '.join(NETWORKS)}, got {name!r}")
    scale = card.setdefault("input_scale", 1.0)
    if not isinstance(scale, int | float) or not 0.0 < scale < math.inf:
        raise ValueError(f"input_scale in {path} must be a positive number, got {scale!r}")
    try:
        AtariSettings(**card["environment"])
    except (TypeError, ValueError) as error:
        text = f"environment in {path} must be what AtariSettings takes: {error}"
        raise ValueError(text) from error
    return card


def _digest(card: Card) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def save_agent(
    path: str | Path,
    network: PixelPolicy,
    settings: AtariSettings,
    *,
    half: bool = False,
    about: Card | None = None,
) -> Card:
    """Store an agent's network and card so that :func:`load_agent` reads them.

    Args:
        path: A ``.safetensors`` file; the card goes beside it.
        network: One of :data:`NETWORKS`.
        settings: The games it plays.
        half: Whether to store all but the first layer in half precision.
        about: What else the card shall say.

    Returns:
        The card.

    Raises:
        ValueError: If the path ends otherwise or the network is of another class.
    """
    path, name = Path(path), type(network).__name__
    if path.suffix != ".safetensors" or name not in NETWORKS:
        text = f"path must end in .safetensors and network be one of {', '.join(NETWORKS)}"
        raise ValueError(f"{text}, got {path} and {name}")
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    if half:
        # rounding the first layer's 8,192 weights moved Pong's log-probabilities by up to 0.014,
        # all the other 1.7 million together by up to 0.0015
        weights |= {key: v.half() for key, v in weights.items() if not key.startswith("body.0.")}
    with whole(path) as writing:
        writing.write_bytes(save(weights))  # save_file would leave a file that others may not read
    facts: Card = {"network": name, "num_actions": network.num_actions, "input_scale": 1.0}
    facts |= {"environment": asdict(settings), "sha256": sha256_of(path)}
    card = {**facts, **(about or {}), **facts}
    write_json(path.with_suffix(".json"), {**card, _DIGEST: _digest(card)})
    return card
