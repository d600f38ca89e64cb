"""A network cut into sections, and whether they can be trained apart from each other."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def split(network: nn.Sequential, cuts: Sequence[int] | int) -> list[nn.Sequential]:
    """Cut a network into sections that share its layers.

    Args:
        network: Layers that follow one another.
        cuts: Numbers of the layers before which to cut, in ascending order: with ``[2]`` the first
            two layers are below the cut. A number n cuts at the n highest places.

    Returns:
        One section more than there are cuts, the lowest first.

    Raises:
        ValueError: If a cut splits nothing, or a section cannot be trained apart from the others.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(
            f"network must be a torch.nn.Sequential to be cut, got {type(network).__name__}"
        )
    places = range(len(network) - cuts, len(network)) if isinstance(cuts, int) else cuts
    bounds = [0, *places, len(network)]
    if len(places) == 0 or any(lower >= upper for lower, upper in pairwise(bounds)):
        raise ValueError(
            f"cuts must be ascending numbers from 1 to {len(network) - 1}, so that each has layers "
            f"on both sides, or how many, got {cuts!r}"
        )
    layers = list(network)
    sections = [nn.Sequential(*layers[lower:upper]) for lower, upper in pairwise(bounds)]
    owners: dict[nn.Parameter, int] = {}
    for number, section in enumerate(sections):
        _check_section(section, number, bounds[number], owners)
    return sections


def _check_section(
    section: nn.Sequential, number: int, first: int, owners: dict[nn.Parameter, int]
) -> None:
    name = f"section {number} (layers {first} to {first + len(section) - 1})"
    trained = [p for p in section.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"every section must have parameters to train, got none in {name}")
    for parameter in trained:
        if owners.setdefault(parameter, number) != number:
            raise ValueError(
                f"sections must not share parameters, got one of {list(parameter.shape)} in "
                f"section {owners[parameter]} and in {name}"
            )


def activation_shapes(
    sections: Sequence[nn.Module], input_shape: Sequence[int], num_classes: int
) -> list[tuple[int, ...]]:
    """Return the shapes of one row of the activation at every cut.

    Runs two rows of zeros through the network in eval mode. A layer that writes in place across a
    cut in train mode alone, such as dropout, is refused by torch in the first step.

    Args:
        sections: The sections, the lowest first.
        input_shape: Shape of one input.
        num_classes: What the last section must answer with.

    Raises:
        ValueError: If the network does not take such inputs or give such outputs, or a section
            writes into its input.
    """
    parameter = next(sections[0].parameters())
    h = torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)
    shapes = []
    for number, section in enumerate(sections):
        before = h._version
        try:
            output = _evaluated(section, h)
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
    if shapes[-1] != (num_classes,):
        raise ValueError(
            f"the network must give [batch, {num_classes}] logits, got {[2, *shapes[-1]]}"
        )
    return shapes[:-1]


def _evaluated(section: nn.Module, h: Tensor) -> Tensor:
    modes = {module: module.training for module in section.modules()}
    try:
        with torch.no_grad():
            output: Tensor = section.eval()(h)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return output
