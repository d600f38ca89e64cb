"""What is observed of a step, and how: frozen, checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev.functional.precision import InnerPrecision

WhichCall = Literal["first", "all"] | int
"""Which of a step's calls counts."""

Wrt = str | int | Sequence[str | int] | None
"""Which input is differentiated; of several, one or more."""


@dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """What is observed of a step.

    Args:
        wrt: The input: position, argument name or key path; None for the first float tensor that
            has an axis. A list of several joins their rows into one input.
        output: Key path of the matched tensor in the student's output; None for the first with as
            many rows as the input.
        call: Which call of the student counts in a step that makes several: ``"first"``, ``"all"``
            (averaged) or an index.
        engine: ``"tape"`` reuses the step's own forward; ``"func"`` runs it inside ``torch.func``;
            ``"auto"`` takes the tape.
        groups: Where several input rows belong to one output row, as the nodes of a graph do: an
            integer vector with the number of the output row for each, named as in ``wrt``. None: an
            argument or attribute ``batch`` beside the input, if the output has another number of
            rows.
        batch_norm: ``"train"`` observes the step's forward as it is; ``"eval"`` takes the
            derivatives in a replay with batch norms in eval mode, where rows are independent.
        row_axes: Axis of the rows in other arguments (named as in ``wrt``) for terms on a part of
            the rows; None for an argument without rows, as are those that are not named. None in
            all: found out at the first replay, which must give what the call gave.
        inner_precision: In which precision the student's derivatives are taken. ``"float32"``: at
            least that; a step in half precision is replayed for it. ``"step"``: from the step's
            own forward, with its digits. ``"bf16-mixed"``: under bfloat16 autocast, in a replay
            unless the step runs so. The teacher keeps its own precision.
        missing: ``"raise"`` refuses a step that does not call the student; ``"skip"`` lets it pass
            without the terms. Of several processes all must skip the same steps.

    Raises:
        ValueError: If an option is none of those named.
    """

    wrt: Wrt = None
    output: str | int | None = None
    call: WhichCall = "first"
    groups: str | int | None = None
    engine: Literal["auto", "tape", "func"] = "auto"
    batch_norm: Literal["train", "eval"] = "train"
    row_axes: Mapping[str | int, int | None] | None = None
    inner_precision: InnerPrecision = "float32"
    missing: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "wrt", _parsed_wrt(self.wrt))
        if self.output is not None:
            _paths.parse(self.output, "output")
        if self.groups is not None:
            _paths.parse(self.groups, "groups")
        is_index = isinstance(self.call, int) and not isinstance(self.call, bool)
        known = is_index or self.call in ("first", "all")
        require(known, "call", "'first', 'all' or an index", self.call)
        check_word("engine", self.engine, ("auto", "tape", "func"))
        check_word("batch_norm", self.batch_norm, ("train", "eval"))
        check_word("inner_precision", self.inner_precision, get_args(InnerPrecision))
        check_word("missing", self.missing, ("raise", "skip"))
        axes = {} if self.row_axes is None else self.row_axes
        known = isinstance(axes, Mapping) and all(
            axis is None or isinstance(axis, int) for axis in axes.values()
        )
        require(known, "row_axes", "a mapping from arguments to axes or None", self.row_axes)


def check_word(name: str, word: object, words: Sequence[str]) -> None:
    """Refuse a word that is none of those known."""
    *most, last = map(repr, words)
    require(word in words, name, f"{', '.join(most)} or {last}", word)


def _parsed_wrt(wrt: Any) -> str | int | tuple[str | int, ...] | None:
    # A list of one is that one.
    if wrt is None:
        return None
    is_list = isinstance(wrt, Sequence) and not isinstance(wrt, str)
    several: tuple[str | int, ...] = tuple(wrt) if is_list else (wrt,)
    if not several or len({_paths.parse(one, "wrt") for one in several}) < len(several):
        raise ValueError(f"wrt must name one or more inputs, each once, got {wrt!r}")
    return several[0] if len(several) == 1 else several
