"""A network cut into sections, and whether they can be trained apart from each other."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from lightning_sobolev._checks import require


def split(network: nn.Sequential, cuts: Sequence[int] | int) -> list[nn.Sequential]:
    """Cut a network into sections that share its layers, the lowest first.

    ``cuts`` are numbers of the layers before which to cut; a number n cuts at the n highest places.
    """
    is_sequence, name = isinstance(network, nn.Sequential), type(network).__name__
    require(is_sequence, "network", "a torch.nn.Sequential to be cut", name)
    places = range(len(network) - cuts, len(network)) if isinstance(cuts, int) else cuts
    bounds = [0, *places, len(network)]
    if len(places) == 0 or any(lower >= upper for lower, upper in pairwise(bounds)):
        raise ValueError(
            f"cuts must be ascending numbers from 1 to {len(network) - 1}, so that each has layers "
            f"on both sides, or how many, got {cuts!r}"
        )
    layers, sections = list(network), []
    owners: dict[nn.Parameter, int] = {}
    for number, (lower, upper) in enumerate(pairwise(bounds)):
        section, name = nn.Sequential(*layers[lower:upper]), f"layers {lower} to {upper - 1}"
        sections.append(section)
        trained = [p for p in section.parameters() if p.requires_grad]
        if not trained:
            raise ValueError(
                "every section must have parameters to train, got none in section "
                f"{number} ({name})"
            )
        for parameter in trained:
            if (owner := owners.setdefault(parameter, number)) != number:
                raise ValueError(
                    f"sections must not share parameters, got one of {list(parameter.shape)} in "
                    f"section {owner} and in section {number} ({name})"
                )
    return sections


def activation_shapes(
    sections: Sequence[nn.Module], input_shape: Sequence[int], num_classes: int
) -> list[tuple[int, ...]]:
    """Return the shapes of one row of the activation at every cut.

    Runs two rows of zeros through a copy in eval mode. A layer that writes in place across a cut in
    train mode alone, such as dropout, is refused by torch in the first step.
    """
    parameter = next(sections[0].parameters())
    h = torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)
    shapes = []
    for number, section in enumerate(sections):
        before = h._version
        try:
            with torch.no_grad():
                output = copy.deepcopy(section).eval()(h)
        except RuntimeError as error:
            raise ValueError(
                f"section {number} must take activations of {list(h.shape)}, got: {error}"
            ) from error
        if h._version != before:
            raise ValueError(
                "a section must not write into its input: expected inplace=False at its start, got "
                f"section {number}, which does"
            )
        h = output
        shapes.append(tuple(h.shape[1:]))
    expected, got = [2, num_classes], [2, *shapes[-1]]
    require(got == expected, "the network's logits", f"{expected}", got)
    return shapes[:-1]
