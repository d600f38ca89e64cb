"""What came of one step's terms, and how it is told: logged, warned of once, or refused."""

import math
import warnings
from dataclasses import dataclass, field
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_sobolev.balance import Balanced
from lightning_sobolev.compared import Matched
from lightning_sobolev.plugin.observation import Observation
from lightning_sobolev.plugin.step_log import key as log_key
from lightning_sobolev.plugin.step_log import log_step
from lightning_sobolev.readings import Reader, at_once
from lightning_sobolev.spec import SobolevSpec


@dataclass
class Outcome:
    """The terms of one step, unweighted, and what else is known of them; all by key."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    unknown: dict[str, Tensor] = field(default_factory=dict)  # rows
    skipped: dict[str, Tensor] = field(default_factory=dict)  # rows
    sighted: dict[str, Tensor] = field(default_factory=dict)  # is anything known of the target?
    flat: dict[str, Tensor] = field(default_factory=dict)  # has the student no second derivative?

    def take_in(self, key: str, matched: Matched, *, counts_unknown: bool) -> None:
        """Note what there is to say about a term beside its size."""
        if matched.skipped is not None:
            self.skipped[key] = matched.skipped
        if matched.vanishes is not None:
            self.flat[key] = matched.vanishes
        if matched.known is None:
            return
        self.sighted[key] = matched.known.any()
        if counts_unknown:
            unknown = (~matched.known).all(0).sum()
            self.unknown[key] = unknown if matched.skipped is None else unknown - matched.skipped


class Reporter:
    """Tells what came of each step; a warning is given once."""

    def __init__(self, read: Reader = at_once) -> None:
        self._warned: set[str] = set()
        self._read = read

    def log(self, module: LightningModule, outcome: Outcome, size: int) -> None:
        """Log the terms and counts of one step, and warn where a term teaches nothing."""
        for key, value in outcome.terms.items():
            log_step(module, log_key("train", key), value.detach(), size)
        for key, rows in outcome.unknown.items():
            module.log(log_key("train", f"{key}_unknown_rows"), rows.float(), batch_size=size)
        for key, count in outcome.skipped.items():
            name = log_key("train", f"{key}_skipped_rows")
            module.log(name, count.float(), batch_size=size)
            left_out = "rows whose target is NaN or Inf are left out; counted in"
            self._warn_if(count, f"term {key!r}: {left_out} {name}")
        for key, sighted in outcome.sighted.items():
            self._warn_if(~sighted, f"term {key!r}: no row of this batch has a known target")
        for key, flat in outcome.flat.items():
            self._warn_if(flat, f"term {key!r}: {_FLAT}")

    def log_weights(
        self, module: LightningModule, spec: SobolevSpec, weights: dict[str, float], size: int
    ) -> None:
        """Log the weights that nobody set."""
        for term in spec.terms:
            if isinstance(term.weight, Balanced):
                name = log_key("train", f"{term.key}_weight")
                module.log(name, weights[term.key], batch_size=size)

    def check_finite(
        self, outcome: Outcome, seen: list[Observation], trainer: Trainer | None, evaluation: int
    ) -> None:
        """Refuse terms that are NaN or Inf; on a CPU before they reach the weights."""
        # The targets are finite: they were checked when they came.
        outputs = [observation.y.detach() for observation in seen]
        step = 0 if trainer is None else trainer.global_step
        scaled = getattr(getattr(trainer, "precision_plugin", None), "scaler", None) is not None
        # No line search comes back from NaN: torch's own goes on and sets every weight to it.
        trial = "" if evaluation == 1 else f", evaluation {evaluation} of its closure ({_TRIAL})"
        for key, value in outcome.terms.items():
            self._read(value, partial(self._judge, key, outputs, f"step {step}{trial}", scaled))

    def _judge(
        self, key: str, outputs: list[Tensor], place: str, scaled: bool, number: float
    ) -> None:
        text = f"term {key!r} must be finite, got {number}"
        if math.isfinite(number):
            return
        if not scaled:
            output_is_finite = all(bool(y.isfinite().all()) for y in outputs)
            raise FloatingPointError(f"{text} at {place}: {_CULPRITS[output_is_finite]}")
        self._warn_once(f"{text}; the gradient scaler skips such steps")

    def _warn_if(self, condition: Tensor, text: str) -> None:
        if text not in self._warned:  # what was said once is not looked at again
            self._read(condition, lambda number: self._warn_once(text) if number else None)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=2)


_FLAT = (
    "the student's second derivative is exactly zero on this batch; with piecewise-linear "
    "activations (ReLU and its kin) an order-2 term trains nothing. Use a smooth activation: "
    "tanh, SiLU, GELU, softplus"
)
_TRIAL = "a line search that went too far? take a smaller lr"
_CULPRITS = {
    True: "the student's output is finite and its derivative is not, or too large to be squared "
    "(a root or a norm at zero? half precision?)",
    False: "the student's own output is not finite, so training had diverged before",
}
