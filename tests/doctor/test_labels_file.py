"""The program that examines the labels in a file."""

import runpy
import sys
import zipfile

import numpy as np
import pytest

from lightning_sobolev.doctor.labels_file import main


@pytest.fixture
def arrays():
    x = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    values, gradient = (x[:, 0] ** 2 + np.sin(x[:, 1])), np.stack([2 * x[:, 0], np.cos(x[:, 1])], 1)
    return {"x": x, "y": values[:, None].astype(np.float32), "jacobian": gradient[:, None]}


def written(tmp_path, arrays):
    path = tmp_path / "labels.npz"
    np.savez(path, **arrays)
    return str(path)


def test_right_labels_are_said_to_be(arrays, tmp_path, capsys):
    assert main([written(tmp_path, arrays)]) == 0
    assert "they are the derivatives of the values" in capsys.readouterr().out


def test_a_fault_is_an_exit_code(arrays, tmp_path, monkeypatch, capsys):
    path = written(tmp_path, arrays | {"jacobian": -arrays["jacobian"]})
    monkeypatch.setattr(sys, "argv", ["doctor", "labels", path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lightning_sobolev.doctor", run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "the wrong sign" in said
    assert "forces=" in said


def test_keys_may_have_other_names(arrays, tmp_path, capsys):
    renamed = {"R": arrays["x"], "E": arrays["y"], "F": -arrays["jacobian"]}
    keys = ["--x", "R", "--y", "E", "--jacobian", "F"]
    assert main([written(tmp_path, renamed), *keys]) == 1
    assert "the wrong sign" in capsys.readouterr().out


def test_help_names_keys_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--jacobian KEY", "[points, *out, *in]", "exit code"))


def refused(change, arrays, tmp_path, capsys):
    assert main([written(tmp_path, {**arrays, **change})]) == 2
    return capsys.readouterr().out


def test_what_cannot_be_examined_is_named(arrays, tmp_path, capsys):
    pickled = {"y": np.array([{}] * 60, dtype=object)}
    said = refused(pickled, arrays, tmp_path, capsys)
    assert "y must be an array of numbers, got ValueError: Object arrays" in said
    words = {"y": np.array(["a"] * 60)}
    assert "y must be an array of numbers, got <U1 (60,)" in refused(
        words, arrays, tmp_path, capsys
    )
    short = {"jacobian": arrays["jacobian"][1:]}
    said = refused(short, arrays, tmp_path, capsys)
    assert "labels.npz: jacobian must be [points, *out, *in] = [60, 1, 2], got [59, 1, 2]" in said
    assert main([written(tmp_path, {"x": arrays["x"]})]) == 2
    assert "y must be one of the arrays ['x'], got 'y'; --y KEY" in capsys.readouterr().out


def test_other_files_are_refused(tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name, text in {
        "one.npy": "got a single one",
        "text.npz": "an .npz file of arrays, got ",
    }.items():
        assert main([str(tmp_path / name)]) == 2
        assert text in capsys.readouterr().out
    assert main([str(tmp_path / "none.npz")]) == 2
    assert "No such file" in capsys.readouterr().out


def test_damaged_files_are_no_fault_of_the_labels(arrays, tmp_path, capsys):
    path = tmp_path / "labels.npz"
    whole = (tmp_path / written(tmp_path, arrays)).read_bytes()
    flipped = bytearray(whole)
    flipped[300] ^= 0xFF  # within the numbers of x
    for damaged in (b"", whole[:-5], whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        assert main([str(path)]) == 2
        assert "labels.npz: " in capsys.readouterr().out
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "no array")
    assert main([str(path)]) == 2
    assert "x must be an array of numbers" in capsys.readouterr().out
