"""What came of one step's terms, and how it is told: logged, warned of once, or refused."""

import warnings
from dataclasses import dataclass, field

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_sobolev.plugin import log_keys
from lightning_sobolev.plugin.observation import Observation
from lightning_sobolev.plugin.step_log import log_step


@dataclass
class Outcome:
    """The terms of one step.

    Args:
        terms: Unweighted scalars by key.
        unknown: Rows without any known target entry, by key; only for teachers that allow them.
        skipped: Rows whose target is not finite, by key; only where they may be left out.
        blind: Keys of terms for which nothing at all is known.
        zero_curvature: Keys of order-2 terms in which the student had no second derivative at all.
    """

    terms: dict[str, Tensor] = field(default_factory=dict)
    unknown: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    blind: list[str] = field(default_factory=list)
    zero_curvature: list[str] = field(default_factory=list)


class Reporter:
    """Tells what came of each step; a warning is given once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def log(self, module: LightningModule, outcome: Outcome, size: int) -> None:
        """Log the terms and counts of one step, and warn where a term teaches nothing."""
        for key, value in outcome.terms.items():
            log_step(module, log_keys.term("train", key), value.detach(), size)
        for key, rows in outcome.unknown.items():
            module.log(log_keys.unknown_rows("train", key), rows, batch_size=size)
        for key, count in outcome.skipped.items():
            module.log(log_keys.skipped_rows("train", key), float(count), batch_size=size)
            if count:
                self._warn_once(
                    f"term {key!r}: rows whose target is NaN or Inf are left out; counted in "
                    f"{log_keys.skipped_rows('train', key)}"
                )
        for key in outcome.blind:
            self._warn_once(f"term {key!r}: no row of this batch has a known target")
        for key in outcome.zero_curvature:
            self._warn_once(
                f"term {key!r}: the student's second derivative is exactly zero on this batch; "
                "with piecewise-linear activations (ReLU and its kin) an order-2 term trains "
                "nothing. Use a smooth activation: tanh, SiLU, GELU, softplus"
            )

    def check_finite(
        self,
        outcome: Outcome,
        seen: list[Observation],
        step: int,
        *,
        scaled: bool,
        evaluation: int = 1,
    ) -> None:
        """Refuse terms that are not numbers before they reach the weights.

        Args:
            outcome: The terms.
            seen: The observed calls, to tell where it began.
            step: Number of the step, for the message.
            scaled: Whether a gradient scaler skips such steps itself; then it is only said.
            evaluation: How often the step's closure has been called, this time included.

        Raises:
            FloatingPointError: If a term is NaN or Inf; the text names the term and the culprit.
        """
        # The targets are finite: they were checked when they came.
        broken = [key for key, value in outcome.terms.items() if not bool(value.isfinite())]
        if not broken:
            return
        output_is_finite = all(bool(observation.y.isfinite().all()) for observation in seen)
        text = f"term {broken[0]!r} must be finite, got {float(outcome.terms[broken[0]].detach())}"
        if scaled:
            self._warn_once(f"{text}; the gradient scaler skips such steps")
            return
        # No line search comes back from NaN: torch's own goes on and sets every weight to it.
        trial = "" if evaluation == 1 else f", evaluation {evaluation} of its closure ({_TRIAL})"
        raise FloatingPointError(f"{text} at step {step}{trial}: {_CULPRITS[output_is_finite]}")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=2)


_TRIAL = "a line search that went too far? take a smaller lr"
_CULPRITS = {
    True: "the student's output is finite and its derivative is not, or too large to be squared "
    "(a root or a norm at zero? half precision?)",
    False: "the student's own output is not finite, so training had diverged before",
}
