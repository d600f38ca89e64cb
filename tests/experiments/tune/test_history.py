"""Who descends from whom, read back from what members reported."""

import math

import pytest

from lightning_sobolev.experiments.tune.history import History, read_history
from lightning_sobolev.experiments.tune.showing import draw_lineage, draw_schedule

NAN = math.nan
HEADER = "score,member,parent,end,knob_lr,training_iteration,time_total_s"


def record(interval, member, parent, score):
    line = {"interval": interval, "member": member, "parent": parent}
    return line | {"end": 10.0 * interval, "score": score, "knob_lr": 0.1 * interval}


# Member 2 diverges in the second interval and copies 0 for the third, 0 copies 1 for the second.
RECORDS = [
    record(1, 0, 0, 3.0),
    record(1, 1, 1, 2.0),
    record(1, 2, 2, 4.0),
    record(2, 0, 1, 1.5),
    record(2, 1, 1, 1.8),
    record(2, 2, 2, NAN),
    record(3, 0, 0, 1.4),
    record(3, 1, 1, 1.7),
    record(3, 2, 0, 1.0),
]


def test_the_line_of_the_best_goes_back_through_its_donors():
    history = History(RECORDS, "min")
    line = [(r["interval"], r["member"]) for r in history.ancestry(history.best)]
    assert line == [(1, 1), (2, 0), (3, 2)]
    assert (history.best, history.copies, history.diverged) == (2, 2, 1)
    assert History(RECORDS, "max").best == 1


def test_whoever_diverged_last_is_not_the_best():
    records = [record(1, 0, 0, NAN), record(1, 1, 1, -5.0)]
    assert History(records, "max").best == History(records, "min").best == 1


def test_without_a_finite_score_there_is_no_best():
    with pytest.raises(ValueError, match="must end with a finite score, got none"):
        History([record(1, 0, 0, NAN)], "min")


def test_of_an_interval_that_was_trained_twice_the_later_one_counts(tmp_path):
    lines = [HEADER, "2.0,0,0,10,0.1,1,1", "1.0,0,0,20,0.1,2,2", "0.5,0,0,20,0.2,2,1"]
    for name, content in (("a", lines), ("b", [HEADER, "7.0,1,1,10,0.1,1,1", ",1,0,20,0.1,2,1"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.csv").write_text("\n".join(content) + "\n")
    history = read_history(tmp_path, "min")
    assert history.at[2, 0]["score"] == 0.5
    assert history.at[2, 0]["knob_lr"] == 0.2
    assert math.isnan(history.at[2, 1]["score"])
    assert history.knobs == ["lr"]


def test_pictures_show_also_what_diverged(tmp_path):
    history = History(RECORDS, "min")
    for draw in (draw_schedule, draw_lineage):
        path = draw(tmp_path / f"{draw.__name__}.png", history)
        assert path.read_bytes().startswith(b"\x89PNG")
