"""The ways in which what lies below a cut is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Along what a section below a cut is moved, and what the model at the cut learns.

    A model predicts the ``"loss"`` of everything above, of which the derivative is taken, or the
    ``"gradient"`` itself.
    """

    gradient: Literal["true", "synthetic", "none"] = "synthetic"
    model: Literal["loss", "gradient"] | None = "loss"
    matches_value: bool = False
    matches_derivative: bool = False


KINDS: Mapping[str, Kind] = {
    "noprop": Kind(gradient="none", model=None),
    "direct": Kind(model="gradient", matches_derivative=True),
    "vfbn": Kind(matches_derivative=True),
    "critic": Kind(matches_value=True),
    "sobolev": Kind(matches_value=True, matches_derivative=True),
    "backprop": Kind(gradient="true", model=None),
}
"""The columns of Czarnecki et al. 2017, table 1, and back-propagation as their upper bound."""
