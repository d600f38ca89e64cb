import json
import os

import pytest

from lightning_sobolev._files import read_json, sha256_of, whole, write_json, write_text


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole(path) as writing:
        writing.write_text("half")
        assert not path.exists()
        writing.write_text("all of it")
    assert path.read_text() == "all of it"
    assert os.listdir(path.parent) == ["a.txt"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def fail():
        with whole(path) as writing:
            writing.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_writers_of_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as first, whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the one that ended last


def test_json_comes_back(tmp_path):
    content = {"a": [1, 2.5, None], "name": "é"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert read_json(tmp_path / "missing.json") is None
    (tmp_path / "a.json").write_text(json.dumps(content)[:-1])
    assert read_json(tmp_path / "a.json") is None


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256_of(tmp_path / "a") == known
