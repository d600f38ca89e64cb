"""Policies that come with the package, are stored, or were trained by other libraries."""

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev._files import read_json, sha256_of, whole, write_json
from lightning_sobolev.atari.agents.hub import PREFIX
from lightning_sobolev.atari.agents.reading import read_weights
from lightning_sobolev.policies.environments import EnvSettings, spaces_of
from lightning_sobolev.policies.foreign import Card, ForeignPolicy, filled, read_foreign
from lightning_sobolev.policies.heads import Head
from lightning_sobolev.policies.networks import PolicyMLP

_PACKAGED = Path(__file__).parent / "weights"

Policy = str | Path | ForeignPolicy | nn.Module
"""Name of a packaged policy, a file, a closer description of one, or a network."""


def policy_names() -> tuple[str, ...]:
    """Return the environments for which a policy comes with the package."""
    return tuple(sorted(path.stem for path in _PACKAGED.glob("*.safetensors")))


def load_policy(policy: Policy, settings: EnvSettings) -> tuple[nn.Module, Card]:
    """Load the policy of an environment, and its card; nothing is unpickled.

    Args:
        policy: Name of a policy of the package, the environment's; a ``.safetensors`` file with its
            card (same name, ``.json``) beside it; any other file that :class:`ForeignPolicy` reads,
            or one of those; or a module from ``[batch, observations]`` to outputs, returned as it
            is with an empty card.
        settings: What it plays.

    Returns:
        The network in float32 and eval mode, mapping observations to the outputs of the head that
        the environment needs, and its card.

    Raises:
        ValueError: If there is no such policy, it is of another kind, incomplete or damaged, or it
            does not fit the environment.
    """
    spaces_of(settings)  # what cannot be played at all is said first
    if isinstance(policy, nn.Module):
        return policy, {}
    is_named = isinstance(policy, str | Path | ForeignPolicy)
    require(is_named, "policy", "a name, a file, a ForeignPolicy or a module", policy)
    if str(policy).startswith(PREFIX):
        policy = ForeignPolicy(str(policy))
    if isinstance(policy, ForeignPolicy):
        network, card = read_foreign(policy, settings)
    elif not (path := Path(policy)).suffix or str(policy) == settings.id:
        network, card = _read_packaged(str(policy))
    elif path.suffix == ".safetensors" and path.with_suffix(".json").exists():
        network, card = _read_stored(path)
    else:
        network, card = read_foreign(ForeignPolicy(path), settings)
    _check_fits(network, settings, str(card.get("source", policy)), card.get("squash", False))
    return network.eval(), card


def save_policy(
    path: str | Path, network: PolicyMLP, settings: EnvSettings, *, about: Card | None = None
) -> Card:
    """Store a policy and its card so that :func:`load_policy` reads them.

    Args:
        path: A ``.safetensors`` file; the card goes beside it.
        network: What is stored.
        settings: What it plays.
        about: What else the card shall say.

    Returns:
        The card.

    Raises:
        ValueError: If the path ends otherwise, or the network is of another class or does not fit
            the environment.
    """
    path = Path(path)
    require(path.suffix == ".safetensors", "path", "a .safetensors file", str(path))
    require(isinstance(network, PolicyMLP), "network", "a PolicyMLP", type(network).__name__)
    _check_fits(network, settings, "network", settings.squash)
    with whole(path) as writing:
        writing.write_bytes(save({key: one.cpu() for key, one in network.state_dict().items()}))
    facts: Card = {"network": network.settings, "environment": asdict(settings)}
    facts |= {"squash": settings.squash, "sha256": sha256_of(path)}
    card = {**(about or {}), **facts}
    write_json(path.with_suffix(".json"), card)
    return card


def _read_packaged(name: str) -> tuple[PolicyMLP, Card]:
    if name not in policy_names():
        raise ValueError(
            f"policy must be one that comes with the package ({', '.join(policy_names())}) or a "
            f"file, got {name!r}: give a zip of stable-baselines3 with teacher=policy_sb3 "
            "teacher.agent.source=model.zip, a stored one with teacher.agent=path.safetensors, or "
            "a network of your own with teacher=policy_module"
        )
    return _read_stored(_PACKAGED / f"{name}.safetensors")


def _read_stored(path: Path) -> tuple[PolicyMLP, Card]:
    card = read_json(path.with_suffix(".json")) or {}
    needed = ("network", "environment", "sha256")
    if missing := [key for key in needed if key not in card]:
        text = f"{path.with_suffix('.json')} must be a card with {', '.join(needed)}"
        raise ValueError(f"{text}, it lacks {missing}")
    if not path.exists() or (found := sha256_of(path)) != card["sha256"]:
        got = found if path.exists() else "no file"
        text = f"{path} must have the sha256 of its card, {card['sha256']}, got {got}"
        raise ValueError(f"{text}: the file is damaged or belongs to another card")
    try:
        network = PolicyMLP(**card["network"])
    except (TypeError, RuntimeError) as error:  # torch raises the latter where memory is short
        raise ValueError(f"network in the card of {path} is not one: {error}") from error
    return filled(network, read_weights(path), str(path)), card


def _check_fits(network: nn.Module, settings: EnvSettings, name: str, squash: bool) -> None:
    assert isinstance(network, PolicyMLP)
    seen, wanted = network.settings["sizes"][0], spaces_of(settings).num_observations
    require(seen == wanted, name, f"a policy over the {wanted} observations of {settings.id}", seen)
    Head.for_env(settings).check(network.settings["num_outputs"], name)
    if squash != settings.squash:
        text = f"env.settings.squash must be {str(squash).lower()} for {name}"
        raise ValueError(f"{text}, got {settings.squash}: that is what its actions do")
