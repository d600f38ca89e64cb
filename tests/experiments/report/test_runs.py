import json
import math

import pandas as pd
import pytest

from lightning_sobolev.experiments.report.runs import (
    find_runs,
    read_table,
    tabulate,
    write_table,
)

NUMBERS = {"test/kl": 0.25, "test/student_return": 12.0, "seconds_fit": 3.0, "train/loss": None}


def table_of(folder, **how):
    return tabulate(find_runs(folder), **how)


def test_columns_are_what_any_run_overrode_and_then_the_numbers(store, tmp_path):
    numbers = {"test/a": 0.5, **NUMBERS}
    store("2", ["+experiment=distill_pong", "sobolev=none", "data.fraction=0.125"], numbers)
    store("10", ["+experiment=distill_pong", "lr=1e-2", "++sobolev.weight=2", "ckpt=x"], numbers)
    frame = table_of(tmp_path)
    assert list(frame) == [
        *("game", "student", "fraction", "experiment", "sobolev.weight"),
        *("sobolev", "seed", "lr", "steps"),
        *("test_kl", "test_a", "student_return", "seconds", "train_loss"),  # first what is scored
    ]
    first, second = (list(row) for _, row in frame.iterrows())
    assert first[:-1] == [
        *("pong", "small", 0.125, "distill_pong", 0.3, "none", 0, 0.002, 2000, 0.25, 0.5, 12.0, 3.0)
    ]
    assert second[2:8] == [1.0, "distill_pong", 2, "order1", 0, 0.01]
    assert frame["train_loss"].isna().all()


def test_more_settings_are_columns_on_demand(store, tmp_path):
    store("0", [], NUMBERS)
    assert table_of(tmp_path, by=["data.root", "scale.name"])["data.root"].tolist() == [
        "recordings"
    ]
    with pytest.raises(ValueError, match=r"--by must name settings of the runs, got data.rot"):
        table_of(tmp_path, by=["data.rot"])


def test_runs_of_other_experiments_share_a_table(store, tmp_path):
    store("0", ["seed=1"], NUMBERS)
    store("1", ["function=booth"], {"test/value_nmse": 0.5}, env=None, task={"match": "identity"})
    frame = table_of(tmp_path)
    assert frame["function"].tolist()[1] == "booth"
    assert frame["test_kl"].isna().tolist() == [False, True]
    assert frame["test_value_nmse"].isna().tolist() == [True, False]


def test_a_seed_that_was_drawn_is_that_of_the_numbers(store, tmp_path):
    folder = store("0", ["seed=7"], NUMBERS | {"seed": 7})
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 7", "seed: null"))
    assert table_of(tmp_path)["seed"].tolist() == [7]


def test_nothing_is_read_from_the_environment(store, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    named = {"a": "oc.env", "b": "${${a}:SECRET}", "c": "${oc.env:SECRET}", "e": "${c}!"}
    folder = store("0", ["++sobolev.weight=${oc.env:SECRET}"], NUMBERS, **named)
    with (folder / ".hydra" / "config.yaml").open("a") as config:
        config.write("d: ${d}\n")  # a circle
    frame = table_of(tmp_path, by=["a", "b", "c", "d", "e"])
    assert "leaked" not in frame.to_csv()
    assert frame["c"].tolist() == ["${oc.env:SECRET}"]


def test_numbers_of_another_configuration_are_refused(store, tmp_path):
    folder = store("0", ["lr=1e-2"], NUMBERS)
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(ValueError, match=r"metrics.json and .*must be of one run.*runs/0"):
        table_of(tmp_path)
    config.write_text(config.read_text().replace("lr: 0.02", "lr: 0.01"))
    config.write_text(config.read_text().replace("pictures: true", "pictures: false"))
    assert len(table_of(tmp_path)) == 1  # how a run is watched changes no number


@pytest.mark.parametrize(
    "path", ["metrics.json", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"- [", b"7", b"\x00"])
def test_damaged_files_are_named(store, tmp_path, path, content):
    folder = store("0", [], NUMBERS)
    (folder / path).write_bytes(content)
    with pytest.raises(ValueError, match=r"runs/0"):
        table_of(tmp_path)


def test_numbers_are_numbers(store, tmp_path):
    folder = store("0", [], NUMBERS)
    (folder / "metrics.json").write_text(json.dumps({"test/kl": "0.5"}))
    with pytest.raises(ValueError, match=r"metrics.json must hold numbers, got '0.5'"):
        table_of(tmp_path)


def test_runs_that_differ_in_no_column_are_refused(store, tmp_path):
    store("0", [], NUMBERS, width=1)
    store("1", [], NUMBERS, width=2)
    with pytest.raises(ValueError, match=r"must differ in one of game.*runs/0 and .*runs/1.*--by"):
        table_of(tmp_path)
    assert table_of(tmp_path, by=["width"])["width"].tolist() == [1, 2]


def test_unfinished_runs_are_left_out(store, tmp_path):
    (store("0", ["seed=0"], NUMBERS) / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"finished runs \(metrics.json\) is needed, got none"):
        table_of(tmp_path)
    store("1", ["seed=1"], NUMBERS)
    assert table_of(tmp_path)["seed"].tolist() == [1]


def test_tables_come_back_with_six_digits(store, tmp_path):
    path = tmp_path / "t.csv"
    store("0", ["sobolev=none", "seed=2147483647"], NUMBERS | {"test/kl": 1 / 3})
    store("1", ["seed=1"], NUMBERS | {"test/kl": math.nan})
    write_table(path, table_of(tmp_path))
    frame = read_table(path)
    assert frame["sobolev"].tolist() == ["none", "order1"]
    assert frame["seed"].tolist() == [2147483647, 1]
    assert frame["test_kl"].tolist() == [0.333333, pytest.approx(math.nan, nan_ok=True)]


@pytest.mark.parametrize(
    "content", [b"", b"game,student\n", b"\xff\xfe", b'a,b\n"1,2\n', b"a\n1,2,3\n1\n"]
)
def test_damaged_tables_are_named(tmp_path, content):
    (tmp_path / "pong.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"table.*pong.csv|pong.csv.*table"):
        read_table(tmp_path / "pong.csv")


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("earlier")

    def killed(_, writing, **__):
        writing.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", killed)
    with pytest.raises(KeyboardInterrupt):
        write_table(path, pd.DataFrame({"a": [1]}))
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("t.csv", "earlier")]
