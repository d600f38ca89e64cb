"""How linear is this teacher over real moves? ``python -m lightning_sobolev.doctor teacher``."""

import argparse
import csv
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev._files import write_text
from lightning_sobolev._types import Teacher
from lightning_sobolev.doctor.arrays import read_arrays
from lightning_sobolev.doctor.teacher import Move, TeacherReport, teacher_report
from lightning_sobolev.spec import OUTPUT_MAPS

_COLUMNS = ("teacher", "states", "seed", "where", "number", "value")
_EXPLANATION = """\
F: share of the change of its answer over a move that its derivative at the first state explains.
T: what the derivatives at both ends explain together.
1 is all of the change, 0 none; below, predicting no change would be better."""


class _Subject(NamedTuple):
    teacher: Teacher | nn.Module
    x: Tensor
    next_x: Tensor | None


def main(arguments: Sequence[str]) -> int:
    """Load, measure, print.

    Returns:
        The exit code: 0 where the teacher was measured, 2 where it cannot be.
    """
    given = _parser().parse_args(arguments)
    on = OUTPUT_MAPS[given.on or ("log_softmax" if given.game else "identity")]
    try:
        subject = _of_game(given) if given.game else _of_module(given)
        report = teacher_report(**subject._asdict(), on=on, seed=given.seed)
        name = given.name or given.agent or given.game or given.teacher
        if given.csv is not None:
            _note(given.csv, (name, str(report.states), str(given.seed)), report)
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
        print(f"the teacher cannot be examined: {error}")
        return 2
    print(f"{name}, {report.states} states\n{_EXPLANATION}\n")
    print(f"{table(report)}\n\nadvice: {report.text}")
    return 0


def table(report: TeacherReport) -> str:
    """Return a report's numbers as plain text."""
    lines = [f"{'':32}{'F':>8}{'T':>8}{'error of F':>12}"]
    lines += [f"{move.name:32}{_scores(move)}" for move in report.moves]
    gradient = report.gradient
    if gradient is None:
        return "\n".join([*lines, "", "the derivative is zero at all states"])
    lines += ["", f"{'its derivative at x + noise':32}{'NMSE':>8}{'cosine':>8}  against that at x"]
    for stable in gradient.stability:
        lines.append(f"{stable.place:32}{stable.nmse:8.2f}{stable.cosine:8.2f}")
    lines += ["", f"{'energy of its derivative':32}{'share':>8}{'inputs':>8}"]
    for varying in gradient.varying:
        lines.append(f"{varying.place:32}{varying.energy:8.1%}{varying.inputs:8.1%}")
    for place, share in gradient.bands:
        lines.append(f"{place:32}{share:8.1%}")
    return "\n".join(lines)


def _scores(move: Move) -> str:
    found = move.found
    if found is None:
        return "  nothing changes"
    return f"{found.first_order:8.2f}{found.both_ends:8.2f}{found.error:12.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_sobolev.doctor teacher",
        description="Say how much of a teacher's change between states its derivatives explain: "
        "whether to match them at stored states, or to ask it for values at states recombined from "
        "two. Nothing is trained.",
        epilog="exit code: 0 the teacher was measured, 2 it cannot be",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--game", help="an Atari game, e.g. pong; needs the extra atari")
    which.add_argument(
        "--teacher", metavar="MODULE:NAME",
        help="a function that returns a torch module or a Teacher, or one of these; needs --data",
    )  # fmt: skip
    parser.add_argument("--agent", help="file of the game's agent (default: the package's own)")
    text = "recorded play of that game (default: some is played first, and not kept)"
    parser.add_argument("--recording", type=Path, metavar="FOLDER", help=text)
    text = "states, as the teacher takes them, in an .npz file; nothing in it is unpickled"
    parser.add_argument("--data", type=Path, metavar="FILE", help=text)
    text = "name of the array [states, *in] in the file (default: %(default)s)"
    parser.add_argument("--x", default="x", metavar="KEY", help=text)
    text = "name of the states that follow those (default: next_x, where the file has it)"
    parser.add_argument("--next-x", metavar="KEY", help=text)
    text = "what is done with the answer first (default: log_softmax in a game, else identity)"
    parser.add_argument("--on", choices=tuple(OUTPUT_MAPS), help=text)
    text = "how many states are used (default: %(default)s)"
    parser.add_argument("--states", type=int, default=128, metavar="COUNT", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    text = "write all numbers there; those of other teachers, states and seeds stay"
    parser.add_argument("--csv", type=Path, metavar="FILE", help=text)
    parser.add_argument("--name", help="what the teacher is called there")
    return parser


def _of_game(given: argparse.Namespace) -> _Subject:
    _refuse(given, "--teacher", ("data", "next_x"))
    # by name: games are above the doctor, and need packages that not everybody has
    try:
        states = import_module("lightning_sobolev.atari.states")
    except ModuleNotFoundError as error:
        text = f"--game needs {error.name}: pip install 'lightning-sobolev[atari]'"
        raise ModuleNotFoundError(text) from error
    found = states.agent_states(given.game, given.agent, given.recording, given.states, given.seed)
    return _Subject(found.network, found.x, found.next_x)


def _of_module(given: argparse.Namespace) -> _Subject:
    _refuse(given, "--game", ("agent", "recording"))
    require(given.data is not None, "--data", "an .npz file of states beside --teacher", None)
    require(given.states >= 2, "--states", "at least 2", given.states)
    keys, optional = {"x": given.x}, {"next_x": "next_x"}
    if given.next_x is not None:
        keys, optional = keys | {"next_x": given.next_x}, {}
    arrays = read_arrays(given.data, keys, optional)
    if len({len(array) for array in arrays.values()}) != 1:
        got = {name: list(array.shape) for name, array in arrays.items()}
        raise ValueError(f"next_x must have as many states as x, got {got}")
    generator = torch.Generator().manual_seed(given.seed)
    rows = torch.randperm(len(arrays["x"]), generator=generator)[: given.states].sort().values
    chosen = {name: array[rows] for name, array in arrays.items()}
    return _Subject(_loaded(given.teacher), chosen["x"], chosen.get("next_x"))


def _refuse(given: argparse.Namespace, beside: str, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(given, name)
        option = name.replace("_", "-")
        require(value is None, f"--{option}", f"left out without {beside}", str(value))


def _loaded(place: str) -> Teacher | nn.Module:
    module, _, name = place.partition(":")
    require(bool(module and name), "--teacher", "MODULE:NAME, e.g. my_package.nets:load", place)
    made: Any = import_module(module)
    for part in name.split("."):
        if not hasattr(made, part):
            raise ValueError(f"--teacher must name something in {module}, got {name!r}")
        made = getattr(made, part)
    if not isinstance(made, nn.Module | Teacher) or isinstance(made, type):
        require(callable(made), "--teacher", "a function, a module or a Teacher", made)
        made = made()
    if not isinstance(made, nn.Module | Teacher):
        raise ValueError(f"--teacher must return a module or a Teacher, got {type(made).__name__}")
    return made


def _note(path: Path, run: tuple[str, str, str], report: TeacherReport) -> None:
    kept = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            fits = tuple(reader.fieldnames or ()) == _COLUMNS
            require(fits, "--csv", f"a new file or one of {_COLUMNS}", str(path))
            rows = [tuple(row.values()) for row in reader]
            kept = [row for row in rows if row[:3] != run]
    own = [
        (*run, where, number, "" if value is None else f"{value:.6g}")
        for where, number, value in report.numbers()
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_COLUMNS, *kept, *own])
    write_text(path, text.getvalue())
