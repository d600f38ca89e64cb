"""Policies over vector observations that stable-baselines3 stored."""

import json
import logging
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_sobolev._checks import require, require_positive
from lightning_sobolev.atari.agents.formats import Q_TEMPERATURE, ForeignAgent
from lightning_sobolev.atari.agents.reading import read_weights
from lightning_sobolev.policies.environments import EnvSettings
from lightning_sobolev.policies.networks import ACTIVATIONS, Deviations, PolicyMLP

log = logging.getLogger(__name__)

Card = dict[str, Any]

_SETTINGS = "_extra_state"
_NORMALIZER = ("observation_mean", "observation_std")
_LARGEST_DATA = 2**26  # bytes of a zip's settings; they hold the last observations, too


class Layout(NamedTuple):
    """How stable-baselines3 names the layers of a policy."""

    name: str
    body: str
    head: str
    activation: str  # its default
    others: tuple[str, ...]  # beginnings of what is stored beside them: critics, targets
    log_std: str | None = None  # a layer of their own
    is_q_values: bool = False


_CRITIC = ("mlp_extractor.value_net.", "value_net.")
LAYOUTS = (
    Layout("PPO or A2C", "mlp_extractor.policy_net.", "action_net", "tanh", _CRITIC),
    Layout("SAC", "actor.latent_pi.", "actor.mu", "relu", ("critic",), "actor.log_std"),
    Layout("DQN", "q_net.q_net.", "", "relu", ("q_net_target.",), is_q_values=True),
)


@dataclass(frozen=True, slots=True)
class ForeignPolicy:
    r"""Where a policy comes from and how its numbers are to be read.

    Args:
        source: A ``.zip`` of stable-baselines3 with ``MlpPolicy``: PPO or A2C (a choice, or a
            Gaussian whose deviations do not depend on the state), DQN, or SAC; or its
            ``policy.pth``, the same tensors as ``.safetensors``, or any of them on the Hugging Face
            Hub as ``hf://ORGANIZATION/REPOSITORY/FILE@REVISION``. Nothing is unpickled.
        activation: Of the hidden layers; None takes what the zip says in plain text, or else the
            library's default: tanh for PPO and A2C, relu for DQN and SAC.
        temperature: :math:`T` of a head of Q-values, the policy being
            :math:`\mathrm{softmax}(Q / T)`; None takes 0.01.
        observation_mean: Mean that was taken off every observation in training (``VecNormalize``),
            as numbers; None took none off.
        observation_std: Deviation by which it was divided: the root of variance and epsilon.
        observation_clip: Bound of the normalized observation, 10 in ``VecNormalize``.
        sha256: Digest that the file must have; None only notes it. Needed for a revision that is
            not a commit.

    Raises:
        ValueError: If a value is of another kind.

    Source:
        Rusu et al. 2015, Policy distillation (arXiv:1511.06295), for the softmax of Q-values at a
        temperature of 0.01.
    """

    source: str | Path
    activation: str | None = None
    temperature: float | None = None
    observation_mean: Sequence[float] | None = None
    observation_std: Sequence[float] | None = None
    observation_clip: float | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        known, value = tuple(ACTIVATIONS), self.activation
        require(value is None or value in known, "activation", f"one of {known}", value)
        for name in ("temperature", "observation_clip"):
            if (number := getattr(self, name)) is not None:
                require_positive(name, number)
        numbers = {name: getattr(self, name) for name in _NORMALIZER}
        both = (self.observation_mean is None) == (self.observation_std is None)
        require(both, " and ".join(_NORMALIZER), "given together or not at all", numbers)
        for name, found in numbers.items():
            is_list = found is None or (_is_numbers(found) and len(found) > 0)
            require(is_list, name, "a list of finite numbers", found)
        is_positive = min(self.observation_std or [1.0]) > 0
        require(is_positive, "observation_std", "positive", self.observation_std)
        ForeignAgent(self.source, sha256=self.sha256)  # a branch of the hub is refused now

    @property
    def file(self) -> ForeignAgent:
        """The file, here or on the hub."""
        return ForeignAgent(self.source, sha256=self.sha256)


def read_foreign(policy: ForeignPolicy, settings: EnvSettings) -> tuple[PolicyMLP, Card]:
    """Read somebody else's policy and describe it."""
    path, digest = policy.file.fetch()
    weights, said, name = read_weights(path), _said(path), str(policy.source)
    layout = _recognized(weights, name, said)
    _warn_of_normalizer(policy, said, name)
    found, temperature = _renamed(weights, layout, name), _temperature(policy, layout, name)
    if temperature is not None:
        found |= {key: found[key] / temperature for key in ("head.weight", "head.bias")}
    hidden = [
        weight for key, weight in found.items() if key.startswith("body.") and weight.ndim == 2
    ]
    first, wide = [*hidden, found["head.weight"]][0], len(found["head.bias"])
    deviations: Deviations = "constant" if "log_std" in found else "none"
    if layout.log_std is not None:
        deviations = "clamped"
    network = PolicyMLP(
        [first.shape[-1], *map(len, hidden)],
        wide if deviations == "none" else 2 * wide,
        activation=_activation(policy, layout, said, name),
        deviations=deviations,
        clip=policy.observation_clip,
    )
    source = {"source": name, "layout": f"stable-baselines3 {layout.name}", "sha256": digest}
    card: Card = {**source, "network": network.settings, "environment": asdict(settings)}
    card |= {"temperature": temperature, "squash": layout.log_std is not None}
    return filled(network, found | _normalizer(policy, network), name), card


def _renamed(weights: Mapping[str, Tensor], layout: Layout, name: str) -> dict[str, Tensor]:
    """Return the policy's tensors under this package's names."""
    numbers = _layers_of(weights, layout)
    head = f"{layout.body}{numbers.pop()}" if layout.is_q_values else layout.head
    names = {f"body.{2 * n}": f"{layout.body}{theirs}" for n, theirs in enumerate(numbers)}
    names |= {"head": head} | ({} if layout.log_std is None else {"log_std": layout.log_std})
    pairs = {f"{o}.{p}": f"{t}.{p}" for o, t in names.items() for p in ("weight", "bias")}
    if missing := [theirs for theirs in pairs.values() if theirs not in weights]:
        raise ValueError(f"{name} must hold the tensors {missing[:4]}, got {list(weights)[:6]}")
    found = {ours: weights[theirs] for ours, theirs in pairs.items()}
    if odd := [pairs[key] for key, one in found.items() if one.ndim != 1 + key.endswith("weight")]:
        raise ValueError(f"{name} must be linear layers with activations, got others at {odd[:4]}")
    return found | ({"log_std": weights["log_std"]} if "log_std" in weights else {})


def _recognized(weights: Mapping[str, Tensor], name: str, said: Card) -> Layout:
    if said.get("use_sde") is True or ("log_std" in weights and weights["log_std"].ndim != 1):
        raise ValueError(f"{name} must be trained with use_sde=False, got state-dependent noise")
    for layout in LAYOUTS:
        heads = [one for one in (layout.head, layout.log_std) if one]
        needed = [f"{one}.weight" for one in heads] or [f"{layout.body}0.weight"]
        if not all(key in weights for key in needed):
            continue
        own = (layout.body, "log_std", *(f"{one}." for one in heads), *layout.others)
        if extra := [key for key in weights if not key.startswith(own)]:
            text = f"{name} must be an MlpPolicy of {layout.name} and nothing more"
            raise ValueError(f"{text}, got further tensors {extra[:4]}")
        return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    text = f"{name} must hold an MlpPolicy of stable-baselines3 ({known})"
    if _SETTINGS in weights:
        text = f"{name} must have its card, a .json of the same name, beside it, or hold {known}"
    raise ValueError(f"{text}, got tensors {list(weights)[:6]}; others go through policy_module")


def _layers_of(weights: Mapping[str, Tensor], layout: Layout) -> list[int]:
    found = {
        key.removeprefix(layout.body).split(".")[0]
        for key in weights
        if key.startswith(layout.body)
    }
    return sorted(int(one) for one in found if one.isdecimal())


def _said(path: Path) -> Card:
    """Read what a zip says in plain text; pickled members of it stay unread."""
    if path.suffix != ".zip":
        return {}
    with zipfile.ZipFile(path) as archive:
        if "data" not in archive.namelist() or archive.getinfo("data").file_size > _LARGEST_DATA:
            return {}
        try:
            content = json.loads(archive.read("data"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data in {path} must be JSON, got something else: {error}") from error
    return content if isinstance(content, dict) else {}


def _activation(policy: ForeignPolicy, layout: Layout, said: Card, name: str) -> str:
    kwargs = said.get("policy_kwargs")
    text = kwargs.get("activation_fn") if isinstance(kwargs, dict) else None
    told = None if text is None else str(text).rstrip("'>").rpartition(".")[-1].lower()
    if told is not None and told not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{name} must have an activation of {known}, got {text}")
    if policy.activation is not None and told not in (None, policy.activation):
        raise ValueError(f"activation must be that of {name}, {told}, got {policy.activation}")
    return policy.activation or told or layout.activation


def _temperature(policy: ForeignPolicy, layout: Layout, name: str) -> float | None:
    if layout.is_q_values:
        return Q_TEMPERATURE if policy.temperature is None else policy.temperature
    if policy.temperature is not None:
        text = f"temperature must be None for {name}, which has no Q-values ({layout.name})"
        raise ValueError(f"{text}, got {policy.temperature}")
    return None


def _normalizer(policy: ForeignPolicy, network: PolicyMLP) -> dict[str, Tensor]:
    if policy.observation_mean is None or policy.observation_std is None:
        return {"mean": network.mean, "std": network.std}
    for name in _NORMALIZER:
        found, wanted = len(getattr(policy, name)), len(network.mean)
        require(found == wanted, name, f"{wanted} numbers, an entry of the observation each", found)
    return {
        "mean": torch.tensor(policy.observation_mean, dtype=torch.float32),
        "std": torch.tensor(policy.observation_std, dtype=torch.float32),
    }


def _is_numbers(found: object) -> bool:
    if isinstance(found, str) or not isinstance(found, Sequence):
        return False
    return all(isinstance(one, int | float) and math.isfinite(one) for one in found)


def _warn_of_normalizer(policy: ForeignPolicy, said: Card, name: str) -> None:
    # the library keeps the observations of the environment beside normalized ones, and only then
    if said.get("_last_original_obs") is not None and policy.observation_mean is None:
        log.warning(
            "observation_mean is None for %s, which was trained in a VecNormalize: where that "
            "normalized observations, give its mean and deviation, or the policy sees others",
            name,
        )


def filled(network: PolicyMLP, weights: Mapping[str, Tensor], name: str) -> PolicyMLP:
    """Give a network the weights of a file, called ``name``; refuse others before that."""
    own, said = network.state_dict(), dict(weights)
    said.setdefault(_SETTINGS, own[_SETTINGS])
    if set(own) != set(said):
        raise ValueError(f"{name} must hold the tensors {sorted(own)}, got {sorted(weights)}")
    for key, weight in said.items():
        if key == _SETTINGS:
            continue
        wanted = list(own[key].shape)
        is_real = weight.layout == torch.strided and weight.is_floating_point()
        if list(weight.shape) != wanted or not is_real:
            got = f"{list(weight.shape)} of {weight.dtype}"
            raise ValueError(f"{key} in {name} must have shape {wanted} and be real, got {got}")
        if not weight.isfinite().all():
            raise ValueError(f"{key} in {name} must be finite, got NaN or infinity")
    network.load_state_dict(said)
    return network.float()
