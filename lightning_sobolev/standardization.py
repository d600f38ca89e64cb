"""Units in which a network trains well, and the way back to the user's own."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._types import Points, Values

Rows = Float[Tensor, "batch *rest"]


class Standardizer(nn.Module):
    r"""The affine change of units that gives data zero mean and unit deviation in every element.

    With :math:`\tilde x_j = (x_j - \mu_j) / \sigma_j` and :math:`\tilde y_c = (y_c - m_c) / s_c`
    derivatives follow by the chain rule:

    .. math:: \frac{\partial \tilde y_c}{\partial \tilde x_j}
        = \frac{\sigma_j}{s_c} \frac{\partial y_c}{\partial x_j}, \quad
        \frac{\partial^2 \tilde y_c}{\partial \tilde x_i \partial \tilde x_j}
        = \frac{\sigma_i \sigma_j}{s_c} \frac{\partial^2 y_c}{\partial x_i \partial x_j}.

    Means and deviations are buffers: they move, convert and are saved with the model. Every method
    takes ``undo=True`` for the way back. NaN stays NaN, so unknown entries stay unknown.

    Args:
        in_shape: Shape of one input, ``*in``.
        out_shape: Shape of one value, ``*out``.

    Source:
        Huge and Savine 2020, Differential machine learning (arXiv:2005.02347), preprocessing.
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor

    def __init__(self, in_shape: Sequence[int] | int, out_shape: Sequence[int] | int = ()) -> None:
        super().__init__()
        for name, shape in (("x", in_shape), ("y", out_shape)):
            sizes = (shape,) if isinstance(shape, int) else tuple(shape)
            self.register_buffer(f"{name}_mean", torch.zeros(sizes))
            self.register_buffer(f"{name}_std", torch.ones(sizes))

    @classmethod
    def fit(cls, x: Float[Tensor, "rows *in"], y: Float[Tensor, "rows *out"]) -> Self:
        """Return the units of a data set; fit them to the training rows alone.

        An element that never changes keeps its scale: there is nothing to divide by.

        Raises:
            ValueError: If there are no rows, or not as many of both, or they are not finite.
        """
        for name, data in (("x", x), ("y", y)):
            if data.ndim == 0 or len(data) == 0 or len(data) != len(x):
                raise ValueError(
                    f"{name} must be [rows, ...] with as many rows as x, at least one, "
                    f"got {list(data.shape)} for x {list(x.shape)}"
                )
            if not bool(data.isfinite().all()):
                raise ValueError(f"{name} must be finite to have a deviation, got NaN or Inf")
        units = cls(x.shape[1:], y.shape[1:])
        units.x_mean, units.x_std = _statistics(x)
        units.y_mean, units.y_std = _statistics(y)
        return units

    def inputs(self, x: Points, *, undo: bool = False) -> Points:
        """Change the units of inputs."""
        return _affine(x, self.x_mean, self.x_std, undo)

    def targets(self, y: Values, *, undo: bool = False) -> Values:
        """Change the units of values."""
        mean, std = self.y_mean, self.y_std
        # A network that ends in [batch, 1] may stand for a value that is [batch].
        if y.shape[1:] != std.shape and std.numel() == y.shape[1:].numel() == 1:
            mean, std = mean.reshape(y.shape[1:]), std.reshape(y.shape[1:])
        return _affine(y, mean, std, undo)

    def tangents(self, v: Rows, *, undo: bool = False) -> Rows:
        """Change the units of directions in input space: they have no mean."""
        return _affine(v, torch.zeros_like(self.x_mean), self.x_std, undo)

    def pushed(self, jv: Rows, *, undo: bool = False) -> Rows:
        """Change the units of directional derivatives along :meth:`tangents`."""
        std = self.y_std if _ends_with(jv, self.y_std.shape) else self.y_std.reshape(())
        return _affine(jv, torch.zeros_like(std), std, undo)

    def jacobian(self, jacobian: Rows, *, undo: bool = False) -> Rows:
        """Return first derivatives ``[batch, *out, *in]`` in the other units.

        ``*out`` may be missing for a single output.

        Raises:
            ValueError: If the shape is another one.
        """
        return self._derivative(jacobian, 1, "jacobian", undo)

    def hessian(self, hessian: Rows, *, undo: bool = False) -> Rows:
        """Change the units of second derivatives ``[batch, *out, *in, *in]``, as of first ones."""
        return self._derivative(hessian, 2, "hessian", undo)

    def _derivative(self, array: Tensor, order: int, name: str, undo: bool) -> Tensor:
        in_shape, out_shape = self.x_std.shape, self.y_std.shape
        inner = tuple(in_shape) * order
        outer = array.shape[1 : array.ndim - len(inner)]
        is_single = outer.numel() == out_shape.numel() == 1
        if not _ends_with(array, inner) or not (outer == out_shape or is_single):
            raise ValueError(
                f"{name} must have shape [batch, *out, {'*in, ' * (order - 1)}*in] with *out = "
                f"{list(out_shape)} and *in = {list(in_shape)}, got {list(array.shape)}"
            )
        factor = self.x_std
        if order == 2:
            ones = (1,) * len(in_shape)
            factor = self.x_std.reshape(*in_shape, *ones) * self.x_std
        factor = factor / self.y_std.reshape(*outer, *(1,) * len(inner))
        factor = factor.to(array)
        return array / factor if undo else array * factor


class Standardized(nn.Module):
    """A network that is asked and answers in the user's units and works in standardized ones.

    ``forward(x)`` is ``units.targets(network(units.inputs(x)), undo=True)``; its derivatives
    are those in the user's units. Both parts are in its ``state_dict``. The other arguments of the
    call are passed on as they are.

    To *train* in standardized units as well, so that losses and derivative terms of different
    units count alike, add a :class:`~lightning_sobolev.StandardUnits` callback.

    Args:
        network: Maps ``[batch, *in]`` to a tensor ``[batch, *out]``.
        units: Fitted units, or ``Standardizer(in_shape, out_shape)`` to load a checkpoint into.

    Example:
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [30.0]])
        >>> net = Standardized(torch.nn.Identity(), Standardizer.fit(x, y))
        >>> net(torch.tensor([[2.5]]))
        tensor([[25.]])
    """

    def __init__(self, network: nn.Module, units: Standardizer) -> None:
        super().__init__()
        self.network, self.units = network, units
        self._switch = _Switch()

    def switch(self, *, to_standard_units: bool) -> None:
        """Let ``forward`` take and give standardized units, or the user's; copies follow."""
        self._switch.is_on = to_standard_units

    def forward(self, x: Points, *args: Any, **kwargs: Any) -> Values:
        """Evaluate the network in the units that are switched on."""
        if self._switch.is_on:
            answer: Tensor = self.network(x, *args, **kwargs)
            return answer
        answer = self.network(self.units.inputs(x), *args, **kwargs)
        return self.units.targets(answer, undo=True)


class _Switch:
    # One for a module and all its copies, so that none is left behind in the other units.
    def __init__(self) -> None:
        self.is_on = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Switch":
        return self

    def __copy__(self) -> "_Switch":
        return self

    def __reduce__(self) -> tuple[type["_Switch"], tuple[()]]:
        return _Switch, ()


def _statistics(data: Tensor) -> tuple[Tensor, Tensor]:
    double = data.detach().double()
    mean, std = double.mean(0), double.std(0, correction=0)
    # The deviation of equal numbers is rounding error, not always zero.
    rounding = 8 * torch.finfo(data.dtype).eps * double.abs().amax(0)
    std = torch.where(std > rounding, std, torch.ones_like(std))
    return mean.to(data), std.to(data)


def _affine(data: Tensor, mean: Tensor, std: Tensor, undo: bool) -> Tensor:
    mean, std = mean.to(data), std.to(data)
    return data * std + mean if undo else (data - mean) / std


def _ends_with(array: Tensor, shape: Sequence[int]) -> bool:
    split = array.ndim - len(shape)
    return split >= 0 and tuple(array.shape[split:]) == tuple(shape)
