"""The program that examines a teacher."""

import csv
import io
import runpy
import sys
import zipfile

import numpy as np
import pytest

from lightning_sobolev.doctor.teacher_file import main

NETS = """
import torch

linear = torch.nn.Linear(4, 2)

class Nets:
    @staticmethod
    def tanh():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

def constant():
    net = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(net.weight)
    return net

def broken():
    net = torch.nn.Linear(4, 2)
    torch.nn.init.constant_(net.weight, torch.nan)
    return net

def other():
    return torch.nn.Linear(5, 2)

def words():
    return "no teacher"

number = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets_of_mine.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((50, 4)).astype(np.float32)
    np.savez("states.npz", x=x, next_x=x + 0.1, obs=x)

    def runs(teacher, *more, data="states.npz"):
        code = main(["--teacher", f"nets_of_mine:{teacher}", "--data", data, *more])
        return code, capsys.readouterr().out

    yield runs
    sys.modules.pop("nets_of_mine", None)


def test_a_teacher_is_measured(run):
    code, said = run("linear", "--states", "20")
    assert code == 0
    assert "nets_of_mine:linear, 20 states" in said
    for line in ("the next state", "elements of another state", "noise of 0.03 std"):
        assert f"{line:32}    1.00    1.00        0.00" in said
    assert "advice: derivatives at stored states (F at recombined states 1.00" in said


def test_it_is_a_part_of_the_doctor(run, monkeypatch, capsys):
    assert run("Nets.tanh")[0] == 0
    arguments = ["teacher", "--teacher", "nets_of_mine:Nets.tanh", "--data", "states.npz"]
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments, "--x", "obs", "--on", "log_softmax"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lightning_sobolev.doctor", run_name="__main__")
    assert ended.value.code == 0
    assert "nets_of_mine:Nets.tanh, 50 states" in capsys.readouterr().out


def test_states_are_drawn_by_the_seed(run):
    first, again = (run("Nets.tanh", "--states", "10", "--seed", "1")[1] for _ in range(2))
    assert first == again
    assert run("Nets.tanh", "--states", "10", "--seed", "2")[1] != first


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--game", "MODULE:NAME", "--next-x KEY", "exit code"))


@pytest.mark.parametrize(
    ("teacher", "more", "text"),
    [
        ("constant", [], "teacher must answer differently somewhere, got the same at 50 states"),
        ("broken", [], "teacher must be finite in value and derivative, got 'NaN or Inf'"),
        ("other", [], "mat1 and mat2"),
        ("words", [], "--teacher must return a module or a Teacher, got str"),
        ("number", [], "--teacher must be a function, a module or a Teacher, got 3"),
        ("nothing", [], "--teacher must name something in nets_of_mine, got 'nothing'"),
        ("linear", ["--next-x", "y"], "next_x must be one of the arrays"),
        ("linear", ["--x", "y"], "got 'y'; --x KEY"),
        ("linear", ["--states", "1"], "--states must be at least 2, got 1"),
        ("linear", ["--agent", "a.zip"], "--agent must be left out without --game, got 'a.zip'"),
    ],
)
def test_what_cannot_be_measured_is_named(run, teacher, more, text):
    code, said = run(teacher, *more)
    assert code == 2
    assert said.startswith("the teacher cannot be examined: ")
    assert text in said


def test_places_of_a_teacher_are_checked(run, capsys):
    del run
    for place, text in {
        "nets_of_mine": "--teacher must be MODULE:NAME",
        "no_such_module:net": "No module named 'no_such_module'",
    }.items():
        assert main(["--teacher", place, "--data", "states.npz"]) == 2
        assert text in capsys.readouterr().out
    assert main(["--teacher", "nets_of_mine:linear"]) == 2
    assert "--data must be an .npz file of states beside --teacher" in capsys.readouterr().out
    assert main(["--game", "pong", "--data", "states.npz"]) == 2
    assert "--data must be left out without --teacher" in capsys.readouterr().out


def test_hostile_files_are_refused(run, tmp_path):
    np.savez("pickled.npz", x=np.array([{}] * 5, dtype=object))
    np.savez("short.npz", x=np.ones((5, 4)), next_x=np.ones((4, 4)))
    np.savez("words.npz", x=np.array(["a"] * 5))
    (tmp_path / "text.npz").write_text("no archive")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 4)}
    )
    with zipfile.ZipFile("large.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    for name, text in {
        "pickled.npz": "x must be an array of numbers, got ValueError: Object arrays",
        "short.npz": "next_x must have as many states as x",
        "words.npz": "x must be an array of numbers, got <U1 (5,)",
        "text.npz": "the file must be an .npz file of arrays",
        "large.npz": "Unable to allocate",
        "none.npz": "No such file",
    }.items():
        code, said = run("linear", data=name)
        assert code == 2
        assert text in said


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_kept_beside_those_of_others(run):
    run("linear", "--csv", "out/table.csv", "--name", "a")
    first = rows_of("out/table.csv")
    run("Nets.tanh", "--csv", "out/table.csv", "--name", "b")
    run("Nets.tanh", "--csv", "out/table.csv", "--name", "a")
    found = rows_of("out/table.csv")
    assert len(found) == 2 * len(first)
    assert [row["teacher"] for row in found] == ["b"] * len(first) + ["a"] * len(first)
    assert found[0]["where"] == "the next state"
    assert [row["value"] for row in found[: len(first)]] == [
        row["value"] for row in found[len(first) :]
    ]
    assert first[0] == {
        "teacher": "a", "states": "50", "seed": "0", "where": "the next state",
        "number": "first_order", "value": "1",
    }  # fmt: skip


def test_another_table_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    code, said = run("linear", "--csv", "mine.csv")
    assert (code, "--csv must be a new file or one of" in said) == (2, True)
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


def test_games_need_their_extra(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("lightning_sobolev.atari")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert main(["--game", "pong"]) == 2
    assert "--game needs ale_py: pip install 'lightning-sobolev[atari]'" in capsys.readouterr().out
