"""Who descends from whom, read back from what members reported."""

import math

import pandas as pd
import pytest

from lightning_sobolev.experiments.tune.history import ancestry, best_member, read_history

NAN = math.nan
HEADER = "score,member,parent,end,setting_lr,training_iteration,time_total_s"


def history(*rows):
    frame = pd.DataFrame(rows, columns=["interval", "member", "parent", "score"])
    return frame.assign(end=10 * frame["interval"], setting_lr=0.1 * frame["interval"])


# Member 2 diverges in the second interval and copies 0 for the third, 0 copies 1 for the second.
FOUND = history(
    *((1, 0, 0, 3.0), (1, 1, 1, 2.0), (1, 2, 2, 4.0)),
    *((2, 0, 1, 1.5), (2, 1, 1, 1.8), (2, 2, 2, NAN)),
    *((3, 0, 0, 1.4), (3, 1, 1, 1.7), (3, 2, 0, 1.0)),
)


def test_the_line_of_the_best_goes_back_through_its_donors():
    assert (best_member(FOUND, "min"), best_member(FOUND, "max")) == (2, 1)
    line = ancestry(FOUND, 2)
    assert line.index.tolist() == [(1, 1), (2, 0), (3, 2)]
    assert line["score"].tolist() == [2.0, 1.5, 1.0]


def test_whoever_diverged_last_is_not_the_best():
    found = history((1, 0, 0, NAN), (1, 1, 1, -5.0))
    assert best_member(found, "max") == best_member(found, "min") == 1
    with pytest.raises(ValueError, match="must end with a finite score, got none"):
        best_member(history((1, 0, 0, NAN)), "min")


def test_of_an_interval_that_was_trained_twice_the_later_one_counts(tmp_path):
    lines = [HEADER, "2.0,0,0,10,0.1,1,1", "1.0,0,0,20,0.1,2,2", "0.5,0,0,20,0.2,2,1"]
    for name, content in (("a", lines), ("b", [HEADER, "7.0,1,1,10,0.1,1,1", ",1,0,20,0.1,2,1"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.csv").write_text("\n".join(content) + "\n")
    found = read_history(tmp_path).set_index(["interval", "member"])
    assert list(found.loc[(2, 0), ["score", "setting_lr"]]) == [0.5, 0.2]
    assert math.isnan(found.loc[(2, 1), "score"])
