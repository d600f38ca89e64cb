r"""Learned Gaussian noise on weights and activations, white or colored."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_sobolev._checks import require

PLACES = ("weight", "input", "output")
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_START = 0.25  # of the noise's deviation, in deviations of what it is added to (the sources')


class NoiseInjection(nn.Module):
    r"""Adds Gaussian noise with a learned covariance.

    .. math:: x + s\,(\alpha \odot \epsilon + F^\top z), \qquad
        \epsilon \sim N(0, I_D),\ z \sim N(0, I_r),

    whose covariance is :math:`s^2 (\mathrm{diag}(d) + F^\top F)` with :math:`d = \alpha^2`, for
    what has D elements. :math:`\alpha` [D] and the rows of F [r, D] are parameters. Without F it
    is parametric noise injection with a factor for each element. s is a deviation: ``std``, or that
    of x itself.

    Axes of x before those of ``shape`` number draws: rows of a batch of activations; a weight has
    none and gets one draw. Numbers come from torch's own generator, as those of dropout.

    Args:
        shape: Of one draw.
        rank: Rows of F; 0 for white noise.
        std: s; None takes the deviation of x at every call.
        at_evaluation: Whether noise is added in evaluation mode, too.
        like: Gives the parameters' type and device.

    Raises:
        ValueError: If ``rank`` is negative.

    Source:
        Zheltonozhskii et al. 2020, Colored Noise Injection for Training Adversarially Robust Neural
        Networks (arXiv:2003.02188); He, Rakin and Fan 2019, Parametric Noise Injection
        (arXiv:1811.09310). Scale and start differ from the released code of the first.
    """

    std: Tensor | None
    factor: nn.Parameter | None

    def __init__(
        self, shape: torch.Size, *, rank: int = 5, std: Tensor | None = None,
        at_evaluation: bool = True, like: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require(rank >= 0, "rank", "at least 0", rank)
        made: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
        self.at_evaluation = at_evaluation
        self.alpha = nn.Parameter(torch.full(shape, _START, **made))
        # Rows drawn independently: equal ones would be one row, and get equal gradients. A tenth
        # each: with five, a twentieth of the variance is correlated to begin with.
        factor = nn.Parameter(0.1 * _START * torch.randn(rank, *shape, **made)) if rank else None
        self.register_parameter("factor", factor)
        self.register_buffer("std", std)

    @property
    def variance(self) -> Float[Tensor, "*shape"]:
        """Variance of each element in units of :math:`s^2`."""
        own = self.alpha.square()
        return own if self.factor is None else own + self.factor.square().sum(0)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return x with noise, or x itself in evaluation mode if that is without.

        Raises:
            ValueError: If x does not end in the axes of ``shape``.
        """
        shape = self.alpha.shape
        if (first := x.dim() - len(shape)) < 0 or x.shape[first:] != shape:
            raise ValueError(f"x must be of shape [..., {list(shape)}], got {list(x.shape)}")
        if not self.training and not self.at_evaluation:
            return x
        noise = self.alpha * torch.randn_like(x)
        if self.factor is not None:
            latent = torch.randn(*x.shape[:first], len(self.factor), dtype=x.dtype, device=x.device)
            noise = noise + torch.tensordot(latent.to(self.factor.dtype), self.factor, 1)
        std = _deviation(x) if self.std is None else self.std
        return x + (std * noise).to(x.dtype)


def _deviation(x: Tensor) -> Float[Tensor, ""]:
    # The root of zero has no slope: weights that begin at zero would get NaN.
    return (x.var(correction=0) + torch.finfo(x.dtype).tiny).sqrt()


def inject_noise(
    module: nn.Module, where: str = "weight", rank: int = 5, color: bool = True, *,
    at_evaluation: bool = True, example: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    """Return the module with a :class:`NoiseInjection` in every linear and convolutional layer.

    Weights become parametrizations of torch (``layer.parametrizations.weight[0]``), with one draw
    for each forward pass that all rows share. Inputs and outputs get a forward hook and a submodule
    (``layer.input_noise``, ``layer.output_noise``), with a draw for each row: their scale is the
    deviation over ``example``, measured once, so that rows stay independent of each other.

    The module is changed in place; build optimizers afterwards. A checkpoint is read by a network
    into which the same noise was put; with noise on its weights a network cannot be pickled whole.
    To treat layers differently, call it on parts of the network. Cost: a draw as large as the
    weights or activations, and ``rank + 1`` times that in parameters.

    Args:
        module: A network, or a single layer.
        where: ``"weight"``, ``"input"`` or ``"output"``.
        rank: Correlated directions of the noise of a layer.
        color: False leaves them out: white noise.
        at_evaluation: Whether noise is added in evaluation mode, until switched otherwise.
        example: For inputs and outputs: a batch that tells sizes and scales, in evaluation mode.

    Raises:
        ValueError: If an argument is out of range, ``example`` is missing or needless or does not
            reach a layer, there is no layer, or one has this noise already.

    Example:
        >>> net = inject_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), rank=2)
        >>> x = torch.ones(1, 3)
        >>> bool((net(x) == net(x)).all())
        False
    """
    require(where in PLACES, "where", f"one of {PLACES}", where)
    require(not color or rank >= 1, "rank", "at least 1 for colored noise", rank)
    if (example is None) != (where == "weight"):
        expected = "a batch for inputs and outputs, None for weights"
        raise ValueError(f"example must be {expected}, got {type(example).__name__} for {where!r}")
    layers = [part for part in module.modules() if isinstance(part, _LAYERS)]
    if not layers:
        raise ValueError("module must have a linear or convolutional layer, got none")
    for layer in layers:
        if _has_noise(layer, where):
            raise ValueError(f"module must not have noise on its {where} yet, got {layer}")
    seen = {} if example is None else _activations(module, layers, where, example)
    for layer in layers:
        place = seen.get(layer, layer.weight)
        noise = NoiseInjection(
            place.shape if example is None else place.shape[1:],
            rank=rank if color else 0,
            std=None if example is None else _deviation(place),
            at_evaluation=at_evaluation,
            like=layer.weight,
        )
        _attach(layer, where, noise.train(layer.training))
    return module


def switch_evaluation_noise(module: nn.Module, on: bool) -> None:
    """Say whether a network's noise is there in evaluation mode, too."""
    for noise in _injections(module):
        noise.at_evaluation = on


def noise_penalty(module: nn.Module) -> Float[Tensor, ""]:
    r"""Return :math:`\sum |F|^2` over a network's noise: a penalty on correlated noise."""
    found = _injections(module)
    squares = [noise.factor.square().sum() for noise in found if noise.factor is not None]
    return torch.stack([found[0].alpha.new_zeros(()), *squares]).sum()


def _injections(module: nn.Module) -> list[NoiseInjection]:
    found = [part for part in module.modules() if isinstance(part, NoiseInjection)]
    if not found:
        raise ValueError("module must have noise (inject_noise), got none")
    return found


def _has_noise(layer: nn.Module, where: str) -> bool:
    if where != "weight":
        return hasattr(layer, f"{where}_noise")
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    own = cast(Any, layer).parametrizations.weight
    return any(isinstance(part, NoiseInjection) for part in own)


def _attach(layer: nn.Module, where: str, noise: NoiseInjection) -> None:
    if where == "weight":
        parametrize.register_parametrization(layer, "weight", noise)
        return
    layer.add_module(f"{where}_noise", noise)
    if where == "input":
        layer.register_forward_pre_hook(_noisy_input)
    else:
        layer.register_forward_hook(_noisy_output)


# Hooks get the layer from torch: after a deepcopy it is the copy, whose noise is its own.
def _noisy_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (cast(NoiseInjection, layer.input_noise)(args[0]), *args[1:])


def _noisy_output(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    del args
    return cast(Tensor, cast(NoiseInjection, layer.output_noise)(output))


def _activations(
    module: nn.Module, layers: list[Any], where: str, example: Tensor
) -> dict[nn.Module, Tensor]:
    seen: dict[nn.Module, Tensor] = {}

    def look(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen[layer] = args[0] if where == "input" else output

    modes = {part: part.training for part in module.modules()}
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        with torch.no_grad():
            module.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in modes.items():
            part.training = training
    if missed := [layer for layer in layers if layer not in seen]:
        raise ValueError(f"example must reach every layer, got none at {missed[0]}")
    return seen
