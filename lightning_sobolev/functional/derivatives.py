r"""The one place that differentiates; longer than other files, so that it stays one.

Two engines give the same numbers. ``"tape"`` records a forward pass and walks it backwards with
``torch.autograd.grad``; it can reuse a forward that somebody else ran (:class:`TapeJet`).
``"func"`` evaluates value and derivative together through ``torch.func`` (:class:`FuncJet`); it is
the one that ``torch.compile`` accepts and the one with a forward mode. Functions take ``fn``, which
may write into its argument, and points ``x``, which need not require grad; their results are
differentiable in the parameters of ``fn``.

Note [row independence]
    Row b of ``fn(x)`` must depend on row b of ``x`` alone. Then one pass over the batch gives the
    derivative of every row; batch norm in train mode breaks this.

Note [fused norms]
    torch's fused layer, instance and train-mode batch norms save their statistics outside the graph
    (pytorch #175754, #196700). ``jvp`` and ``hvp`` through them are right as numbers, but their
    gradients in the parameters of earlier layers are wrong without an error, in both engines.
    ``fn`` must write its norms out where such a result is trained on; ``vjp`` is not affected.

Note [projections at once]
    With ``at_once=1`` projections run in a loop, one backward pass after the other. With N, one
    backward pass carries N of them, by ``torch.func.vmap`` around ``autograd.grad``. The numbers
    are the same to rounding. It pays where a pass is too small to fill the processor, and needs a
    batching rule for the backward of every layer: a Function whose backward is a Function of the
    old style, or looks at numbers, raises ``RuntimeError``. What a backward pass of somebody's own
    draws at random is the same for all N. Inductor does not take it (torch 2.13).
    ``is_grads_batched`` of ``autograd.grad`` is an older vmap, without rules for GELU and SiLU.
    Temporary memory grows N times; what a graph keeps for training does not, as the loop keeps it
    for every projection, too.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn, InRows, Jet, OutRows, Points, Values

Engine = Literal["func", "tape"]


class TapeJet:
    """The jet of a forward pass that is already on autograd's tape.

    Nothing is evaluated again, so a dropout mask is that of the recorded forward. ``vjp`` and
    ``hvp`` cost one and two backward passes per projection. ``jvp`` is the transpose of ``vjp``,
    which is linear in its cotangent: one backward pass once and one more per projection. ``hvp``
    needs the first of its two once for all where it is given one cotangent, expanded; only then can
    it take several projections at once. Usable under ``no_grad`` and ``inference_mode``. Assumes
    row independence and, for ``jvp`` and ``hvp``, no fused norms (notes above).

    Args:
        y: The recorded output.
        x: The observed input; ``y`` was computed from it and it requires grad.
        create_graph: Whether the derivatives may be part of a loss.

    Raises:
        ValueError: If ``x`` does not require grad or ``y`` was not computed from it.
    """

    def __init__(self, y: Values, x: Points, *, create_graph: bool = True) -> None:
        if not x.requires_grad:
            raise ValueError("x must require grad before the forward pass, got one that does not")
        if not y.requires_grad:
            raise ValueError(_UNCONNECTED)
        self._y, self._x, self._create_graph = y, x, create_graph
        self.out_shape = y.shape
        self._transposed: tuple[Tensor, Tensor] | None = None

    @property
    def value(self) -> Values:
        """The recorded output, cut off from the graph if the derivatives are."""
        return self._y if self._create_graph else self._y.detach()

    def vjp(self, cotangents: OutRows, *, at_once: int = 1) -> InRows:
        r"""Pull cotangents back: row :math:`(p, b)` is :math:`u_{pb}^\top J(x_b)`."""
        if cotangents.shape != (1, *self._y.shape):
            _check_shape("cotangents", cotangents, self._y)
        elif torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return self._pull(cotangents[0], self._create_graph).unsqueeze(0)  # the usual case
        with _recording():
            pull = partial(self._pull, create_graph=self._create_graph)
            return _each(pull, at_once, _usable(cotangents))

    def jvp(self, tangents: InRows, *, at_once: int = 1) -> OutRows:
        r"""Push tangents forward: row :math:`(p, b)` is :math:`J(x_b) v_{pb}`."""
        _check_shape("tangents", tangents, self._x)
        with _recording():
            if self._transposed is None:
                dummy = torch.zeros_like(self._y).requires_grad_()
                self._transposed = dummy, self._pull(dummy, create_graph=True)
            dummy, row = self._transposed
            return _each(partial(self._grad, row, dummy), at_once, _usable(tangents))

    def hvp(self, cotangents: OutRows, tangents: InRows, *, at_once: int = 1) -> InRows:
        r"""Return the Hessian of :math:`\langle u_{pb}, f \rangle` at :math:`x_b` times v."""
        _check_pairs(cotangents, self._y, tangents, self._x)
        pull = partial(self._pull, create_graph=True)
        is_expanded = len(cotangents) > 1 and cotangents.stride(0) == 0
        with _recording():
            cotangents, tangents = _usable(cotangents), _usable(tangents)
            if is_expanded:
                return _each(partial(self._grad, pull(cotangents[0]), self._x), at_once, tangents)
            # A row of each pair's own: reverse mode would mix rows that were recorded together.
            expected = "1 for pairs of cotangents and tangents on the tape"
            require(at_once == 1, "at_once", expected, at_once)
            return _each(lambda u, v: self._grad(pull(u), self._x, v), 1, cotangents, tangents)

    def _pull(self, cotangent: Tensor, create_graph: bool) -> Tensor:
        y, x = self._y, self._x
        (row,) = torch.autograd.grad(
            y, x, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        # y may depend on parameters alone and so require grad without depending on x
        if row is None:
            raise ValueError(_UNCONNECTED)
        return row

    def _grad(self, row: Tensor, wrt: Tensor, weight: Tensor) -> Tensor:
        if not row.requires_grad:
            return torch.zeros_like(wrt)
        (product,) = torch.autograd.grad(
            row, wrt, weight, retain_graph=True, create_graph=self._create_graph, allow_unused=True
        )
        return torch.zeros_like(wrt) if product is None else product


class FuncJet:
    """The jet of a function through ``torch.func``.

    Without ``tangents`` one forward pass gives the value and the pullback, which ``vjp`` and its
    transpose ``jvp`` reuse. With ``tangents`` value and ``jvp`` come together from one pass of
    forward mode, all projections in one ``vmap`` that draws the same random numbers for each, and
    whatever ``at_once`` says. What
    was not prepared at construction evaluates ``fn`` anew, ``hvp`` once per projection; give a
    stochastic ``fn`` to a :class:`TapeJet`. Assumes row independence and, for ``jvp`` and ``hvp``,
    no fused norms (notes above). An output that does not depend on ``x`` has derivative zero.

    Args:
        fn: The function; it may write into its argument but not into tensors that it closes over.
        x: Points of evaluation.
        tangents: Directions of forward mode, known in advance.
        has_aux: Whether ``fn`` returns ``(output, aux)``, ``aux`` a tree of tensors.
    """

    aux: Any

    def __init__(
        self, fn: Callable[[Tensor], Any], x: Points, *,
        tangents: InRows | None = None, has_aux: bool = False,
    ) -> None:  # fmt: skip
        self._fn, self._x, self._has_aux, self.pushed = fn, x, has_aux, tangents
        self._pullback: Callable[[Tensor], tuple[Tensor]] | None = None
        if tangents is None:
            self._y, self._pullback, self.aux = self._vjp()
        else:
            _check_shape("tangents", tangents, x)
            self._y, self._columns, self.aux = self._jvp(tangents)
        self.out_shape = self._y.shape

    @property
    def value(self) -> Values:
        """The function's value."""
        return self._y

    def vjp(self, cotangents: OutRows, *, at_once: int = 1) -> InRows:
        r"""Pull cotangents back: row :math:`(p, b)` is :math:`u_{pb}^\top J(x_b)`."""
        _check_shape("cotangents", cotangents, self._y)
        if self._pullback is None:
            _, self._pullback, _ = self._vjp()
        pullback = self._pullback
        return _each(lambda u: pullback(u)[0], at_once, cotangents)

    def jvp(self, tangents: InRows, *, at_once: int = 1) -> OutRows:
        r"""Push tangents forward: row :math:`(p, b)` is :math:`J(x_b) v_{pb}`."""
        _check_shape("tangents", tangents, self._x)
        if self.pushed is tangents:
            return self._columns
        if self._pullback is None:
            return self._jvp(tangents)[1]
        pullback = self._pullback
        push = torch.func.vjp(lambda u: pullback(u)[0], torch.zeros_like(self._y))[1]
        return _each(lambda v: push(v)[0], at_once, tangents)

    def hvp(self, cotangents: OutRows, tangents: InRows, *, at_once: int = 1) -> InRows:
        r"""Return the Hessian of :math:`\langle u_{pb}, f \rangle` at :math:`x_b` times v.

        Reverse over reverse, which ``torch.compile`` accepts; forward over reverse it does not.
        """
        _check_pairs(cotangents, self._y, tangents, self._x)

        def along(u: Tensor, v: Tensor) -> Tensor:
            product: Tensor = torch.func.vjp(lambda x: self._vjp(x)[1](u)[0], self._x)[1](v)[0]
            return product

        return _each(along, at_once, cotangents, tangents)

    def _on_clone(self, x: Tensor) -> Any:
        return self._fn(x.clone())  # a forward that writes in place must not reach the leaf

    def _vjp(self, x: Tensor | None = None) -> tuple[Tensor, Callable[..., tuple[Tensor]], Any]:
        point = self._x if x is None else x
        result: tuple[Any, ...] = torch.func.vjp(self._on_clone, point, has_aux=self._has_aux)
        return result if self._has_aux else (*result, None)

    def _jvp(self, tangents: Tensor) -> tuple[Tensor, Tensor, Any]:
        def push(tangent: Tensor) -> Any:
            return torch.func.jvp(self._on_clone, (self._x,), (tangent,), has_aux=self._has_aux)

        result: tuple[Any, ...]
        if len(tangents) == 1:  # without vmap: not every layer has a batching rule
            value, column, *aux = push(tangents[0])
            result = value, column[None], *aux
        else:
            out_dims: Any = (None, 0, None) if self._has_aux else (None, 0)
            result = torch.func.vmap(push, out_dims=out_dims, randomness="same")(tangents)
        return result if self._has_aux else (*result, None)


def tape_jet(fn: BatchFn, x: Points, *, create_graph: bool = False) -> TapeJet:
    """Return the jet of ``fn``, recorded at a detached copy of ``x``.

    One forward pass. Works under ``no_grad`` and ``inference_mode`` (inside validate, test and
    predict) too; tensors that ``fn`` closes over must then be ordinary ones, as parameters are. No
    gradient ever reaches ``x``; with ``create_graph`` the derivatives may be part of a loss.
    """
    is_usual = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with nullcontext() if is_usual else _recording():
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        # a forward that writes in place must not reach the leaf
        return TapeJet(fn(leaf.clone()), leaf, create_graph=create_graph)


def value_and_vjp(
    fn: BatchFn, x: Points, cotangents: OutRows, *, engine: Engine = "func"
) -> tuple[Values, InRows]:
    r"""Return values of ``fn`` and cotangents pulled back to its input.

    Row :math:`(p, b)` of the second result is :math:`u_{pb}^\top J(x_b)`. One forward pass and one
    backward pass per projection. Assumes row independence (note above). Projections on random
    vectors take the Jacobian's place in Czarnecki et al. 2017 (arXiv:1706.04859).

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> value_and_vjp(torch.square, x, torch.ones(1, 2, 2))[1].squeeze(0)
        tensor([[2., 4.],
                [6., 8.]])
    """
    jet = _jet(fn, x, engine)
    return jet.value, jet.vjp(cotangents)


def value_and_jvp(
    fn: BatchFn, x: Points, tangents: InRows, *, engine: Engine = "func"
) -> tuple[Values, OutRows]:
    r"""Return values of ``fn`` and tangents pushed forward to its output.

    Column :math:`(p, b)` of the second result is :math:`J(x_b) v_{pb}`. ``"func"`` runs forward
    mode, one pass for value and columns; ``"tape"`` transposes the vjp: one forward pass, one
    backward pass and one more per projection. Assumes row independence, and no fused norms where
    the columns are trained on (notes above).

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> value_and_jvp(torch.square, x, torch.tensor([[[1.0, 0.0]]]))[1]
        tensor([[[2., 0.]]])
    """
    _check_shape("tangents", tangents, x)
    jet = FuncJet(fn, x, tangents=tangents) if engine == "func" else _jet(fn, x, engine)
    return jet.value, jet.jvp(tangents)


def hvp(
    fn: BatchFn, x: Points, cotangents: OutRows, tangents: InRows, *, engine: Engine = "func"
) -> InRows:
    r"""Return products of Hessians with tangents, differentiable in the parameters of ``fn``.

    Row :math:`(p, b)` is :math:`\nabla^2_x \langle u_{pb}, f \rangle (x_b) \, v_{pb}`, by reverse
    over reverse mode: two backward passes per projection. Zero for piecewise linear functions.
    Assumes row independence, and no fused norms where the result is trained on (notes above).

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> hvp(lambda x: x.pow(3).sum(-1), x, torch.ones(1, 1), torch.ones(1, 1, 2))
        tensor([[[ 6., 12.]]])
    """
    return _jet(fn, x, engine).hvp(cotangents, tangents)


def jacobian(
    fn: BatchFn, x: Points, *, engine: Engine = "func", at_once: int = 1
) -> Float[Tensor, "batch ..."]:
    """Return the full Jacobian ``[batch, *out, *in]`` of every row.

    One backward pass per element of the output, or ``at_once`` of them in one (note above). Assumes
    row independence (note above).
    """
    jet = _jet(fn, x, engine)
    rows = jet.vjp(basis_of(jet.value), at_once=at_once)  # [out, batch, *in]
    return rows.movedim(0, 1).reshape(*jet.value.shape, *x.shape[1:])


def hessian(
    fn: BatchFn, x: Points, *, engine: Engine = "func", at_once: int = 1
) -> Float[Tensor, "batch ..."]:
    """Return the full Hessian ``[batch, *out, *in, *in]`` of every row.

    A backward pass per element of the output and one more per pair with an element of the input
    (``"func"``: two per pair), or ``at_once`` of these in one. Assumes row independence, and no
    fused norms where the result is trained on (notes above).
    """
    jet = _jet(fn, x, engine)
    pairs = all_pairs(partial(jet.hvp, at_once=at_once), basis_of(jet.value), basis_of(x))
    return pairs.movedim(0, 1).reshape(*jet.value.shape, *x.shape[1:], *x.shape[1:])


def all_pairs(
    product: Callable[[OutRows, InRows], InRows], cotangents: OutRows, tangents: InRows
) -> InRows:
    """Return a jet's Hessian products of every cotangent with every tangent, one u after another.

    Its ``hvp`` is given each cotangent once, expanded.
    """
    columns = [product(u.expand(len(tangents), *u.shape), tangents) for u in cotangents]
    return columns[0] if len(columns) == 1 else torch.cat(columns)


class RecordedScalar:
    """A scalar function on the tape, whose derivatives can be differentiated again and again.

    ``fn`` maps ``[batch, axes]`` to ``[batch]``. Where nothing depends on the input any more (a
    linear function, the second derivative of ReLU) the gradient is zero. Works under ``no_grad``
    and ``inference_mode``.

    Raises:
        ValueError: If ``fn`` gives anything else than one number for a row.
    """

    def __init__(self, fn: BatchFn, x: Float[Tensor, "batch axes"]) -> None:
        with _recording():
            self._x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            self.value = fn(self._x.clone())
        if self.value.shape != x.shape[:1]:
            raise ValueError(f"fn must return [batch] = {[len(x)]}, got {list(self.value.shape)}")

    def gradient(self, y: Float[Tensor, " batch"]) -> tuple[Float[Tensor, " batch"], ...]:
        """Return the derivatives of the value, or of an earlier one, along every axis."""
        with _recording():
            row = None
            if y.requires_grad:
                (row,) = torch.autograd.grad(
                    y, self._x, torch.ones_like(y), create_graph=True, allow_unused=True
                )
            return (torch.zeros_like(self._x) if row is None else row).unbind(-1)


_UNCONNECTED = (
    "the output does not depend on the observed input through differentiable operations; expected "
    "y to be computed from x, got an output without a path to it (integer input, argmax, detach?)"
)


def _jet(fn: BatchFn, x: Tensor, engine: str) -> TapeJet | FuncJet:
    require(engine in get_args(Engine), "engine", f"one of {get_args(Engine)}", engine)
    jet = FuncJet(fn, x) if engine == "func" else tape_jet(fn, x, create_graph=True)
    if jet.value.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"fn must keep the batch axis: expected [{len(x)}, *out], got {list(jet.value.shape)}"
        )
    return jet


def _each(one: Callable[..., Tensor], at_once: int, *directions: Tensor) -> Tensor:
    if at_once == 1 or len(directions[0]) == 1:
        return _stacked([one(*row) for row in zip(*directions, strict=True)])
    # A function that is evaluated anew draws the same random numbers for each projection.
    batched = torch.func.vmap(one, randomness="same", chunk_size=at_once)
    rows: Tensor = batched(*directions)
    return rows


def _stacked(rows: list[Tensor]) -> Tensor:
    # stack() copies; a single row, the usual case, only needs its axis
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


def _recording() -> AbstractContextManager[Any]:
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return nullcontext()  # a training step: the modes are as they should be
    modes = ExitStack()
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.enable_grad())
    return modes


def _usable(direction: Tensor) -> Tensor:
    return direction.clone() if direction.is_inference() else direction


def basis_of(like: Tensor) -> Float[Tensor, "size batch *rest"]:
    """Return every basis direction of a row, for every row."""
    size = like.shape[1:].numel()
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye.reshape(size, 1, *like.shape[1:]).expand(size, *like.shape)


def _check_shape(name: str, directions: Tensor, like: Tensor) -> None:
    if directions.shape[1:] != like.shape or directions.shape[:1] in ((), (0,)):
        expected = ", ".join(["proj >= 1", *map(str, like.shape)])
        raise ValueError(f"{name} must have shape [{expected}], got {list(directions.shape)}")


def _check_pairs(cotangents: Tensor, y: Tensor, tangents: Tensor, x: Tensor) -> None:
    _check_shape("cotangents", cotangents, y)
    _check_shape("tangents", tangents, x)
    if len(cotangents) != len(tangents):
        raise ValueError(
            "cotangents and tangents must come in pairs: expected the same number of projections, "
            f"got {len(cotangents)} and {len(tangents)}"
        )


def fitted(cotangents: OutRows, jet: Jet) -> OutRows:
    """Return cotangents in the shape of a jet's output, where only axes of length one differ.

    A network that gives [batch] may teach one that gives [batch, 1].
    """
    if not (type(jet) is TapeJet or type(jet) is FuncJet):
        return cotangents
    shape = jet.out_shape
    if shape == cotangents.shape[1:] or without_ones(shape) != without_ones(cotangents.shape[1:]):
        return cotangents
    return cotangents.reshape(len(cotangents), *shape)


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape without axes of length one behind the first."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))
