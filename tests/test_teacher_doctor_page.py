"""The code of docs/teacher-doctor.md runs, and its numbers are those of the committed table."""

import re
from pathlib import Path

import pandas as pd
import pytest

from lightning_sobolev.doctor import Explained, TeacherReport
from lightning_sobolev.doctor.teacher import Move

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "teacher-doctor.md").read_text()
RESULTS = (DOCS / "results" / "teacher_moves.md").read_text()
TABLE = pd.read_csv(DOCS / "results" / "teacher_moves.csv", keep_default_na=False)
GAMES = {"pong": "Pong", "breakout": "Breakout", "space_invaders": "Space Invaders"}
SCORES = ["first_order", "both_ends", "error"]
NAMES = {
    "first_order": "F", "both_ends": "T", "gradient_nmse": "NMSE (cosine) of the derivative",
    "share_of_inputs": "share of inputs", "share_of_energy": "share of energy",
}  # fmt: skip
ADVICE = {"stored": "derivatives at stored states", "queries": "queries", "open": "open"}


def numbers_of(game, states=256, seed=0):
    own = TABLE[(TABLE["teacher"] == game) & (TABLE["states"] == states) & (TABLE["seed"] == seed)]
    return {(row.where, row.number): row.value for row in own.itertuples()}


def report_of(game, states, seed):
    found = numbers_of(game, states, seed)
    places = [where for where, number in found if number == "first_order"]
    moves = (Move(at, Explained(*(found[at, name] for name in SCORES))) for at in places)
    return TeacherReport(states, tuple(moves), None)


def cell(found, where, number):
    value = found[where, number]
    if number.startswith("share"):
        return f"{value:.1%}"
    if number == "first_order":
        return f"{value:.2f} ± {found[where, 'error']:.2f}"
    beside = f" ({found[where, 'gradient_cosine']:.2f})" if number == "gradient_nmse" else ""
    return f"{value:.2f}{beside}"


def rows_of_results():
    found = [numbers_of(game) for game in GAMES]
    for where, number in found[0]:
        if number in NAMES:
            cells = [cell(each, where, number) for each in found]
            yield f"| {where} | {NAMES[number]} | {' | '.join(cells)} |"


def drawn(game):
    """Return the extremes of both scores over ten draws, and how often each advice was given."""
    reports = [report_of(game, 128, seed) for seed in range(10)]
    ranges = [
        f"{min(values):.2f} to {max(values):.2f}"
        for values in ([each.recombined for each in reports], [each.short for each in reports])
    ]
    advice = [report.advice for report in reports]
    counts = [f"{name} {advice.count(name)}" for name in ADVICE if name in advice]
    return (*ranges, ", ".join(counts))


def rows_of_page():
    found = [numbers_of(game) for game in GAMES]
    for number in SCORES[:2]:
        for where in [at for at, name in found[0] if name == number and "noise" not in at]:
            cells = [f"{each[where, number]:.2f}" for each in found]
            yield f"| {NAMES[number]}, {where} | {' | '.join(cells)} |"
    advice = [ADVICE[report_of(game, 256, 0).advice] for game in GAMES]
    yield f"| advice | {' | '.join(advice)} |"
    yield f"| **what won** | {ADVICE['stored']} | queries | queries |"
    draws = [drawn(game) for game in GAMES]
    yield f"| F recombined, ten draws of 128 | {' | '.join(each[0] for each in draws)} |"
    yield f"| advice in these draws | {' | '.join(each[2] for each in draws)} |"


def test_the_code_prints_what_the_page_says(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/teacher-doctor.md", "exec"), {})
    shown = re.search(r"```\n\n((?:    .*\n)+)", PAGE.split(code)[1])[1]
    assert capsys.readouterr().out == re.sub("^    ", "", shown, flags=re.MULTILINE)


def test_results_are_those_of_the_table():
    assert "\n".join(rows_of_results()) in RESULTS


@pytest.mark.parametrize("game", GAMES)
def test_draws_are_those_of_the_table(game):
    assert f"| {GAMES[game]} | {' | '.join(drawn(game))} |" in RESULTS


def test_the_page_repeats_the_results():
    assert "\n".join(rows_of_page()) in PAGE
