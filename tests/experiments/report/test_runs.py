import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from lightning_sobolev.experiments.common.figures import save
from lightning_sobolev.experiments.report.runs import find_runs, read_table, tabulate, write_table

NUMBERS = {"test/kl": 0.25, "test/student_return": 12.0, "seconds_fit": 3.0, "train/loss": None}


def table_of(folder, **how):
    return tabulate(find_runs(folder), **how)


def edit(folder, old, new):
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace(old, new))


def test_columns_are_what_any_run_overrode_and_then_the_numbers(store, tmp_path):
    numbers = {"test/a": 0.5, **NUMBERS}
    store("2", ["+experiment=distill_pong", "sobolev=none", "data.fraction=0.125"], numbers)
    store("10", ["+experiment=distill_pong", "lr=1e-2", "++sobolev.weight=2", "ckpt=x"], NUMBERS)
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
    assert frame["test_a"].isna().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"--by must name settings of the runs, got data.rot"):
        table_of(tmp_path, by=["data.rot"])


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
    folder = store("0", ["lr=1e-2", "seed=7"], NUMBERS | {"seed": 7})
    edit(folder, "pictures: true", "pictures: false")  # how a run is watched changes no number
    edit(folder, "seed: 7", "seed: null")  # nor whether its seed was given or drawn
    assert table_of(tmp_path)["seed"].tolist() == [7]
    edit(folder, "lr: 0.01", "lr: 0.02")
    with pytest.raises(ValueError, match=r"metrics.json and .*must be of one run.*runs/0"):
        table_of(tmp_path)


@pytest.mark.parametrize(
    "path", ["metrics.json", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"- [", b"7", b'{"test/kl": "0.5"}'])
def test_damaged_files_are_named(store, tmp_path, path, content):
    folder = store("0", [], NUMBERS)
    (folder / path).write_bytes(content)
    with pytest.raises(ValueError, match=r"runs/0"):
        table_of(tmp_path)


def test_runs_that_differ_in_no_column_are_refused(store, tmp_path):
    for number in ("0", "1"):
        store(number, [], NUMBERS, width=f"w{number}")
    with pytest.raises(ValueError, match=r"must differ in one of game.*runs/0 and .*runs/1.*--by"):
        table_of(tmp_path)
    assert table_of(tmp_path, by=["width"])["width"].tolist() == ["w0", "w1"]


def test_finished_runs_come_back_from_a_table_with_six_digits(store, tmp_path):
    path = tmp_path / "t.csv"
    (store("2", ["seed=0"], NUMBERS) / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"finished runs \(metrics.json\) is needed, got none"):
        table_of(tmp_path)
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


@pytest.mark.parametrize(
    ("kind", "method", "write"),
    [
        (pd.DataFrame, "to_csv", lambda path: write_table(path, pd.DataFrame({"a": [1]}))),
        (Figure, "savefig", lambda path: save(Figure(), path)),
    ],
)
def test_a_killed_writer_leaves_the_earlier_file(kind, method, write, tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("earlier")

    def killed(_, writing, **__):
        writing.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, method, killed)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("t.csv", "earlier")]


def test_a_setting_that_the_data_decided_is_shown_as_decided(store, tmp_path):
    overrides = ["+experiment=distill_pong", "seed=0"]
    store("0", overrides, {**NUMBERS, "where": "queries"}, where="auto")
    store("1", ["+experiment=distill_pong", "seed=1"], NUMBERS, where="stored")
    table = tabulate(find_runs(tmp_path / "runs"), by=["where"])
    assert list(table["where"]) == ["queries", "stored"]


def test_a_decided_share_of_queries_is_a_setting_also_where_others_gave_it(store, tmp_path):
    chosen = ["+experiment=distill_pong", "where=queries"]
    decided = {**NUMBERS, "where": "queries", "query_share": 0.75}
    store("0", chosen, decided, where="queries", query_share=None)
    given = {**decided, "query_share": 0.5}
    store("1", [*chosen, "query_share=0.5"], given, where="queries", query_share=0.5)
    table = tabulate(find_runs(tmp_path / "runs"))
    assert list(table["query_share"]) == [0.75, 0.5]
