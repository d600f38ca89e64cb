"""Fully connected policies over vector observations, as students and as teachers."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev.policies.environments import EnvSettings, spaces_of
from lightning_sobolev.policies.heads import Head
from lightning_sobolev.teachers import NetworkTeacher

Observations = Float[Tensor, "batch obs"]
Outputs = Float[Tensor, "batch outputs"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "leakyrelu": nn.LeakyReLU,
}
Deviations = Literal["none", "constant", "clamped"]
_LEAST, _LARGEST = -20.0, 2.0  # logarithms of deviations in SAC


def layers(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers of these widths, an activation behind each."""
    require(activation in ACTIVATIONS, "activation", f"one of {tuple(ACTIVATIONS)}", activation)
    is_widths = all(isinstance(one, int) and one >= 1 for one in sizes) and len(sizes) >= 1
    require(is_widths, "sizes", "widths of at least 1", sizes)
    body = nn.Sequential()
    for inputs, outputs in pairwise(sizes):
        body.extend([nn.Linear(inputs, outputs), ACTIVATIONS[activation]()])
    return body


class PolicyMLP(nn.Module):
    r"""Layers between an observation and a head: logits, or a Gaussian's parameters.

    The observation is first brought to :math:`(x - m) / s`, cut off at ``clip``, which is what a
    normalizer around the environment did while an agent was trained; without one it stays as it is.

    Args:
        sizes: Width of the observation, then those of the hidden layers.
        num_outputs: Logits, or twice the number of continuous actions.
        activation: One of ``ACTIVATIONS``.
        deviations: ``"none"``: all outputs are those of the last layer. ``"constant"``: the last
            layer gives means; logarithms of deviations are a parameter (PPO, A2C). ``"clamped"``: a
            layer of their own gives them, clamped to -20..2 (SAC).
        clip: Bound of the normalized observation's entries; None has none.

    Raises:
        ValueError: If the activation or the deviations are unknown, or the outputs of a Gaussian
            are an odd number.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        num_outputs: int,
        *,
        activation: str = "tanh",
        deviations: Deviations = "none",
        clip: float | None = None,
    ) -> None:
        super().__init__()
        known = ("none", "constant", "clamped")
        require(deviations in known, "deviations", f"one of {known}", deviations)
        is_even = deviations == "none" or num_outputs % 2 == 0
        require(is_even, "num_outputs", "even for means and deviations", num_outputs)
        self.settings: dict[str, Any] = {
            "sizes": list(sizes),
            "num_outputs": num_outputs,
            "activation": activation,
            "deviations": deviations,
            "clip": clip,
        }
        self.body, self.clip = layers(sizes, activation), clip
        width = num_outputs if deviations == "none" else num_outputs // 2
        self.head = nn.Linear(sizes[-1], width)
        self.log_std: nn.Parameter | nn.Linear | None = None
        if deviations == "constant":
            self.log_std = nn.Parameter(torch.zeros(width))
        elif deviations == "clamped":
            self.log_std = nn.Linear(sizes[-1], width)
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("std", torch.ones(sizes[0]))

    def get_extra_state(self) -> Tensor:
        """Return the settings as bytes: they are part of the state, so of a fingerprint, too."""
        # equal weights behind another activation are another policy
        return torch.tensor(
            list(json.dumps(self.settings, sort_keys=True).encode()), dtype=torch.uint8
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of a policy with other settings."""
        found = json.loads(bytes(state.cpu().tolist()))
        require(found == self.settings, "state", f"one of {self.settings}", found)

    def forward(self, x: Observations) -> Outputs:
        """Return logits, or means followed by logarithms of deviations."""
        z = (x - self.mean) / self.std
        hidden = self.body(z if self.clip is None else z.clamp(-self.clip, self.clip))
        outputs: Tensor = self.head(hidden)
        if self.log_std is None:
            return outputs
        if isinstance(self.log_std, nn.Linear):
            log_std = self.log_std(hidden).clamp(_LEAST, _LARGEST)
        else:
            log_std = self.log_std.expand_as(outputs)
        return torch.cat([outputs, log_std], -1)


class PolicyStudent(nn.Module):
    r"""A student that sees some entries of the observation, in standard units.

    ``forward`` takes whole observations, as a teacher does: it picks the entries that the student
    ``sees`` and asks ``body`` with :math:`z = (x - m) / s`. Derivatives are compared with respect
    to :math:`z`, so that no entry counts more because its unit is smaller: observe ``net.body``,
    and ask a :class:`PolicyTeacher`. Mean and deviation are part of the state.

    Args:
        body: Maps ``[batch, seen]`` to outputs.
        num_observations: Entries of the whole observation.
        sees: Which of them the student sees, each once; None is all of them.

    Raises:
        ValueError: If an index is none of the observation's, or there twice.
    """

    mean: Tensor
    std: Tensor
    sees: Tensor

    def __init__(
        self, body: nn.Module, num_observations: int, sees: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        chosen = _chosen(sees, num_observations)
        self.body = body
        self.register_buffer("sees", torch.tensor(chosen))
        self.register_buffer("mean", torch.zeros(num_observations))
        self.register_buffer("std", torch.ones(num_observations))

    @classmethod
    def for_env(
        cls,
        settings: EnvSettings,
        *,
        sees: Sequence[int] | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
    ) -> Self:
        """Return a student for an environment: hidden layers of these widths."""
        num_observations, outputs = spaces_of(settings).num_observations, Head.for_env(settings)
        assert outputs.num_outputs is not None
        seen = len(_chosen(sees, num_observations))
        body = PolicyMLP([seen, *hidden], outputs.num_outputs, activation=activation)
        return cls(body, num_observations, sees)

    def standardize_by(self, mean: Float[Tensor, " obs"], std: Float[Tensor, " obs"]) -> None:
        """Set mean and deviation of the training states.

        Raises:
            ValueError: If they are of another length.
        """
        for name, found in (("mean", mean), ("std", std)):
            shape = list(self.mean.shape)
            require(list(found.shape) == shape, name, f"of shape {shape}", list(found.shape))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def standardized(self, x: Observations) -> Float[Tensor, "batch seen"]:
        """Return what ``body`` is called with."""
        return ((x - self.mean) / self.std)[:, self.sees]

    def units(self, rows: int) -> dict[str, Tensor]:
        """Return what a :class:`PolicyTeacher` needs to know of the student in a batch."""
        own = {"student_mean": self.mean, "student_std": self.std, "student_sees": self.sees}
        return {name: one.expand(rows, -1) for name, one in own.items()}

    def forward(self, x: Observations) -> Outputs:
        """Return the outputs for whole observations."""
        outputs: Tensor = self.body(self.standardized(x))
        return outputs


def _chosen(sees: Sequence[int] | None, num_observations: int) -> list[int]:
    if sees is None:
        return list(range(num_observations))
    is_list = isinstance(sees, Sequence)
    is_whole = is_list and all(type(one) is int and 0 <= one < num_observations for one in sees)
    fits = is_whole and len(set(sees)) == len(sees) > 0
    require(fits, "sees", f"different numbers in 0..{num_observations - 1}", sees)
    return list(sees)


class _InStudentUnits(nn.Module):
    """A policy behind the student's units: asked with z, and with what the batch holds."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, z: Tensor, x: Tensor, student_mean: Tensor, student_std: Tensor, student_sees: Tensor
    ) -> Tensor:
        sees = student_sees[0]
        seen = z * student_std[:, sees] + student_mean[:, sees]
        outputs: Tensor = self.policy(x.index_copy(1, sees, seen))
        return outputs


class PolicyTeacher(NetworkTeacher):
    """A policy as the teacher of a :class:`PolicyStudent`'s ``body``.

    It answers with derivatives with respect to what the student sees, in the student's units; what
    the student does not see is taken from the batch and constant. A batch holds whole observations
    ``x`` and the student's :meth:`~PolicyStudent.units`.

    Args:
        policy: Maps whole observations to outputs.
    """

    def __init__(self, policy: nn.Module) -> None:
        names = ("z", "x", "student_mean", "student_std", "student_sees")
        super().__init__(_InStudentUnits(policy), inputs=list(names), shared="z")
        self.player = policy
