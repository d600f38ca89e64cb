"""What is said at a cut: the loss of every row and its gradient with respect to the activation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.functional.derivatives import TapeJet


@dataclass(frozen=True, slots=True)
class Message:
    """Value and derivative of a loss at the activation of a cut.

    Args:
        gradient: Of every row's loss with respect to its own activation, not divided by the batch.
        value: The loss of every row; None where only a gradient is known.
    """

    gradient: Float[Tensor, "batch *in"]
    value: Float[Tensor, " batch"] | None = None

    def detach(self) -> "Message":
        """Return the message without a graph."""
        return Message(self.gradient.detach(), None if self.value is None else self.value.detach())


def speak(
    model: nn.Module,
    kind: Kind,
    h: Float[Tensor, "batch *in"],
    y: Int[Tensor, " batch"],
    *,
    create_graph: bool = False,
) -> Message:
    """Ask the model at a cut.

    One forward pass and, for a loss model, one backward pass. No gradient ever reaches ``h``.

    Args:
        model: A loss model or a gradient model, as ``kind`` says.
        kind: What the model answers with.
        h: The activation.
        y: The classes.
        create_graph: Whether the derivative of a loss model may be part of a loss.

    Returns:
        The message; its parts carry a graph to the model's parameters.
    """
    leaf = h.detach().requires_grad_()
    if kind.model == "gradient":
        return Message(model(leaf.detach(), y))
    value = model(leaf, y)
    jet = TapeJet(value, leaf, create_graph=create_graph)
    return Message(jet.vjp(torch.ones_like(value)[None])[0], value)


def check_models(
    models: Sequence[nn.Module], kind: Kind, shapes: Sequence[tuple[int, ...]], like: Tensor
) -> None:
    """Ask every model about two rows of zeros and look at the shape of its answer.

    Args:
        models: A model for every cut, the lowest first.
        kind: What they should answer with.
        shapes: Shape of one row of the activation at every cut.
        like: Has the type and the device of the activations.

    Raises:
        ValueError: If there is not one for every cut, the kind has none, or one has another shape.
    """
    if kind.model is None or len(models) != len(shapes):
        needed = 0 if kind.model is None else len(shapes)
        raise ValueError(
            f"models must be one for every cut of this kind ({needed}), got {len(models)}"
        )
    for cut, (model, shape) in enumerate(zip(models, shapes, strict=True), start=1):
        check_answer(model, kind, shape, cut, like)


def check_answer(
    model: nn.Module, kind: Kind, shape: tuple[int, ...], cut: int, like: Tensor
) -> None:
    """Ask a model about two rows of zeros and look at the shape of its answer.

    Args:
        model: The model of a cut.
        kind: What it should answer with.
        shape: Shape of one row of the activation.
        cut: Number of the cut, for the error.
        like: Has the type and the device of the activation.

    Raises:
        ValueError: If the answer is not one loss a row, or not a gradient shaped as the activation.
    """
    h = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
    expected = [2, *shape] if kind.model == "gradient" else [2]
    try:
        with torch.no_grad():
            answer = model(h, torch.zeros(2, dtype=torch.int64, device=like.device))
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"the model of cut {cut} must take activations of {list(h.shape)}, got: {error}"
        ) from error
    if list(answer.shape) != expected:
        raise ValueError(
            f"the model of cut {cut} must answer activations of {list(h.shape)} with {expected}, "
            f"got {list(answer.shape)}"
        )
