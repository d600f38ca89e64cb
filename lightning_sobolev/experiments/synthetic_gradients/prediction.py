"""What a model at a cut predicts: the loss of every row and its gradient in the activation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.functional.derivatives import TapeJet


@dataclass(frozen=True, slots=True)
class LossGradient:
    """Value and gradient of a loss at the activation of a cut, true or predicted.

    Args:
        gradient: Of every row's loss with respect to its own activation, not divided by the batch.
        value: The loss of every row; None where only a gradient is known.
    """

    gradient: Float[Tensor, "batch *in"]
    value: Float[Tensor, " batch"] | None = None

    def detach(self) -> "LossGradient":
        """Return the same without a graph."""
        value = None if self.value is None else self.value.detach()
        return LossGradient(self.gradient.detach(), value)


def predict(
    model: nn.Module,
    kind: Kind,
    h: Float[Tensor, "batch *in"],
    y: Int[Tensor, " batch"],
    *,
    create_graph: bool = False,
) -> LossGradient:
    """Ask the model at a cut for the synthetic gradient.

    One forward pass and, for a loss model, one backward pass. No gradient ever reaches ``h``.

    Args:
        model: A loss model or a gradient model, as ``kind`` says.
        kind: What the model predicts.
        h: The activation.
        y: The classes.
        create_graph: Whether the model shall be taught by what it predicts here.

    Returns:
        The prediction; its parts carry a graph to the model's parameters.
    """
    leaf = h.detach().requires_grad_()
    if kind.model == "gradient":
        return LossGradient(model(leaf.detach(), y))
    value = model(leaf, y)
    jet = TapeJet(value, leaf, create_graph=create_graph and kind.matches_derivative)
    return LossGradient(jet.vjp(torch.ones_like(value)[None])[0], value)


def check_models(
    models: Sequence[nn.Module], kind: Kind, shapes: Sequence[tuple[int, ...]], like: Tensor
) -> None:
    """Ask every model about two rows of zeros and look at the shape of its answer.

    Args:
        models: A model for every cut, the lowest first.
        kind: What they should predict.
        shapes: Shape of one row of the activation at every cut.
        like: Has the type and the device of the activations.

    Raises:
        ValueError: If there is not one for every cut, the kind has none, or one gives neither one
            loss a row nor, where it should, a gradient shaped as the activation.
    """
    needed = 0 if kind.model is None else len(shapes)
    if len(models) != needed:
        raise ValueError(
            f"models must be one for every cut of this kind ({needed}), got {len(models)}"
        )
    y = torch.zeros(2, dtype=torch.int64, device=like.device)
    for cut, (model, shape) in enumerate(zip(models, shapes, strict=False), start=1):
        h = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
        expected = [2, *shape] if kind.model == "gradient" else [2]
        try:
            with torch.no_grad():
                answer = model(h, y)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"the model of cut {cut} must take activations of {list(h.shape)}, got: {error}"
            ) from error
        if list(answer.shape) != expected:
            raise ValueError(
                f"the model of cut {cut} must answer activations of {list(h.shape)} with "
                f"{expected}, got {list(answer.shape)}"
            )
