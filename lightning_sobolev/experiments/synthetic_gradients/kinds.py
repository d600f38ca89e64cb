"""The ways in which what lies below a cut is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What passes a cut downwards, and what the model at the cut learns from.

    Args:
        message: ``"true"`` gradient, ``"model"`` for the gradient that the model at the cut gives,
            or ``"nothing"``.
        model: What the model at a cut answers with: the ``"loss"`` of everything above, of which
            the derivative is taken, or the ``"gradient"`` itself.
        matches_value: Whether a loss model is taught the value.
        matches_derivative: Whether a loss model is taught the derivative, or a gradient model the
            gradient.
    """

    message: Literal["true", "model", "nothing"] = "model"
    model: Literal["loss", "gradient"] | None = "loss"
    matches_value: bool = False
    matches_derivative: bool = False


KINDS: Mapping[str, Kind] = {
    "noprop": Kind(message="nothing", model=None),
    "direct": Kind(model="gradient", matches_derivative=True),
    "vfbn": Kind(matches_derivative=True),
    "critic": Kind(matches_value=True),
    "sobolev": Kind(matches_value=True, matches_derivative=True),
    "backprop": Kind(message="true", model=None),
}
"""The columns of Czarnecki et al. 2017, table 1, and back-propagation as their upper bound."""


def kind_named(name: str) -> Kind:
    """Return one of ``KINDS``.

    Args:
        name: Its name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in KINDS:
        raise ValueError(f"kind must be one of {tuple(KINDS)}, got {name!r}")
    return KINDS[name]
