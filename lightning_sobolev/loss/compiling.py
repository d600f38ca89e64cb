"""A function that is compiled when first called, and believed only if it agrees with itself."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import torch
from torch import (
    Tensor,
    _dynamo,  # noqa: F401 - an attribute of torch after its import alone
    nn,
)
from torch._dynamo.utils import counters

from lightning_sobolev._checks import require
from lightning_sobolev.loss.compare import Comparison

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest relative deviation of compiled from eager numbers; a compiler may reorder sums."""

_HALF_TOLERANCE = 5e-2

_LIMITS = ("FailOnRecompileLimitHit", "RecompileLimitExceeded", "RecompileError")
_KNOWN: tuple[type[Exception], ...] = (
    RuntimeError,
    torch._dynamo.exc.TorchDynamoException,
    *(vars(torch._dynamo.exc)[name] for name in _LIMITS if name in vars(torch._dynamo.exc)),
)
"""What torch raises when it cannot compile, or has compiled one function too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSettings:
    """How the observed call is compiled.

    Args:
        backend: Of ``torch.compile``.
        mode: Of ``torch.compile``, for inductor.
        dynamic: Of ``torch.compile``; False compiles one graph for each shape of the batch.
        uncompilable: ``"raise"`` refuses a student that cannot be compiled whole; ``"tape"`` warns
            and goes on with the tape engine.
        tolerance: How far compiled and eager numbers may differ on the first batch, relatively;
            None for 1e-9 in float64, 1e-3 in float32 and 5e-2 under autocast.

    Raises:
        ValueError: If ``uncompilable`` is neither or the tolerance is not positive.
    """

    backend: str = "inductor"
    mode: str | None = None
    dynamic: bool | None = False
    uncompilable: Literal["raise", "tape"] = "raise"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        known = self.uncompilable in ("raise", "tape")
        require(known, "uncompilable", "'raise' or 'tape'", self.uncompilable)
        fits = self.tolerance is None or self.tolerance > 0.0
        require(fits, "tolerance", "positive", self.tolerance)

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``torch.compile``."""
        found: dict[str, Any] = {"backend": self.backend, "dynamic": self.dynamic}
        if self.backend == "inductor":
            # Torch's own generators: the masks of dropout are those of the eager step.
            chosen = torch._inductor.list_mode_options(self.mode) if self.mode else {}
            found["options"] = {**chosen, "fallback_random": True}
        return {**found, "fullgraph": True}


@dataclass(frozen=True, slots=True)
class Joint:
    """What one evaluation gives; ``aux`` is what the student returned beside its value."""

    aux: Any
    value: Tensor
    comparisons: dict[int, Comparison]


class GivenUp(Exception):
    """The function does not compile, and something else may stand in."""


class CompiledFunction:
    """Compiles when first called, compares with the eager function, counts its graphs."""

    def __init__(
        self, eager: Callable[..., Joint], settings: CompileSettings, module: nn.Module,
        names: Mapping[int, str], *, nested: bool,
    ) -> None:  # fmt: skip
        self.eager, self._settings, self._module, self._names = eager, settings, module, names
        self._nested, self._warned = nested, False
        self._compiled: Callable[..., Joint] | None = None
        self._shapes: set[Any] = set()
        self.graphs = 0

    def __call__(self, shape: Any, *arguments: Any) -> Joint:
        """Evaluate, and compile where that was not done yet."""
        self._shapes.add(shape)
        if self._compiled is None:
            with same_random_numbers(arguments[0].device):
                expected = self.eager(*arguments)  # what fails here fails without a compiler, too
            self._compiled = torch.compile(_with_own_code(self.eager), **self._settings.options())
            with same_random_numbers(arguments[0].device):
                found = self._call(self._compiled, arguments)
            self._check(found, expected)
        return self._call(self._compiled, arguments)

    def _call(self, compiled: Callable[..., Joint], arguments: tuple[Any, ...]) -> Joint:
        before = counters["stats"]["unique_graphs"]
        try:
            # DDP's optimiser would cut the graph at its buckets, in the middle of a derivative.
            whole = torch._dynamo.config.patch(optimize_ddp=False)
            stance = torch.compiler.set_stance("default") if self._nested else nullcontext()
            with whole, stance:
                return compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except _KNOWN as error:
            self._refuse(error)
            raise GivenUp from error
        finally:
            self.graphs += counters["stats"]["unique_graphs"] - before
            self._tell_of_more_graphs()

    def _tell_of_more_graphs(self) -> None:
        if self.graphs > len(self._shapes) and not self._warned:
            self._warned = True
            warnings.warn(
                f"compile: {self.graphs} graphs for {len(self._shapes)} shapes of the input: "
                "something else changes between steps; TORCH_LOGS=recompiles says what",
                stacklevel=2,
            )

    def _refuse(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = "; ".join(lines[:2]) or type(error).__name__
        if self._settings.uncompilable == "raise":
            raise RuntimeError(
                "compile: torch.compile does not take the student's call and its derivatives as "
                "one graph; CompileSettings(uncompilable='tape') goes on without a compiler, and "
                f"compile=False runs engine='func' as it is (torch says: {why})"
            ) from error
        warnings.warn(f"compile: given up for engine='tape' (torch says: {why})", stacklevel=2)

    def _check(self, found: Joint, expected: Joint) -> None:
        dtype = torch.promote_types(found.aux[1].dtype, torch.bfloat16)
        tolerance = self._settings.tolerance or TOLERANCES.get(dtype, _HALF_TOLERANCE)
        for index, name in self._names.items():
            compiled, eager = (
                float(joint.comparisons[index].distance.detach().nanmean())
                for joint in (found, expected)
            )
            _require_near(f"term {name!r}", compiled, eager, tolerance)
        sizes = [_gradient(joint, self._module) for joint in (found, expected)]
        if not sizes[0].numel():
            return
        apart = float((sizes[0] - sizes[1]).norm())
        norms = [float(size.norm()) for size in sizes]
        if not apart <= tolerance * max(norms):
            raise ValueError(
                "compile: the parameter gradient must agree with the eager one to "
                f"{tolerance:.0e}, got norms {norms[0]:.9g} compiled and {norms[1]:.9g} eager, "
                f"{apart:.3g} apart; compile=False trains without a compiler"
            )


def _with_own_code(function: Any) -> Any:
    # Graphs are kept with the code, and only a few for each: every fit would count for the next.
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, closure=function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _require_near(name: str, compiled: float, eager: float, tolerance: float) -> None:
    if compiled != compiled and eager != eager:
        return  # both are no number: that is the user's to see, and not the compiler's fault
    if not abs(compiled - eager) <= tolerance * max(abs(compiled), abs(eager)):
        raise ValueError(
            f"compile: {name} must agree with the eager one to {tolerance:.0e}, got "
            f"{compiled:.9g} compiled and {eager:.9g} eager; compile=False trains without a "
            "compiler"
        )


def _gradient(joint: Joint, module: nn.Module) -> Tensor:
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = joint.value.float().square().mean()
    for comparison in joint.comparisons.values():
        total = total + comparison.distance.mean()
    if not parameters or not total.requires_grad:
        return torch.zeros(0)
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None])


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Put the global generators back where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
