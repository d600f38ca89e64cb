import csv
from pathlib import Path

import pytest
import torch

from lightning_sobolev.experiments.distillation.playing import PlayGame
from lightning_sobolev.experiments.distillation.scoring import TABLE, Scoring
from lightning_sobolev.experiments.run.stored import chosen_weights, load_module
from tests.scripts.conftest import DISTILLATION

EPISODES = "sizes.smoke.num_episodes=2"


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_stored_student_scores_what_it_scored_at_the_end_of_its_run(finished, tmp_path):
    cfg, metrics = finished(*DISTILLATION, EPISODES, "pictures=false")
    (table,) = Scoring(num_episodes=2).score(tmp_path / "runs", tmp_path / "out")
    drawn, likeliest = lines = read(table)
    assert [line["actions"] for line in lines] == ["drawn", "likeliest"]
    assert {line["run"] for line in lines} == {Path(cfg.run_dir).name}
    for line, ending in ((drawn, ""), (likeliest, "_greedy")):
        for who in ("student", "teacher"):
            wanted = metrics[f"test/{who}_return{ending}"]
            assert float(line[f"{who}_return"]) == pytest.approx(wanted, rel=1e-5)
            wanted = metrics[f"test/{who}_return{ending}_standard_error"]
            assert float(line[f"{who}_error"]) == pytest.approx(wanted, rel=1e-5)


def test_what_the_table_holds_is_not_played_again(finished, tmp_path, monkeypatch):
    cfg, _ = finished(*DISTILLATION, "pictures=false")
    who = [f"{player}_return{way}" for player in ("student", "teacher") for way in ("", "_greedy")]
    score = {f"test/{name}{end}": 1.5 for name in who for end in ("", "_standard_error")}
    monkeypatch.setattr(PlayGame, "returns", lambda *_, **__: score)
    scoring, runs = Scoring(num_episodes=2), tmp_path / "runs"
    Path(cfg.run_dir).rename(runs / "0")  # as a sweep calls it
    (table,) = scoring.score(runs, runs)
    first = table.read_text()
    assert list(scoring.score(runs, runs)) == []
    assert table == runs / TABLE
    assert table.read_text() == first
    assert len(list(Scoring(num_episodes=3).score(runs, runs))) == 1
    assert len(list(Scoring(num_episodes=2, seed=1).score(runs, runs))) == 1
    games = [(line["episodes"], line["games_seed"]) for line in read(table)[::2]]
    assert games == [("2", "1000"), ("3", "1000"), ("2", "1")]


def test_the_weights_that_a_run_tested_are_read_back(finished):
    # One validation after each of two steps; the first is taken for the best.
    cfg, _ = finished(
        *DISTILLATION, "pictures=false", "callbacks=best", "val_every=1", "callbacks.best.mode=max"
    )
    folder = Path(cfg.run_dir)
    assert chosen_weights(folder).name == "best.ckpt"
    best = load_module(cfg, chosen_weights(folder)).state_dict()
    chosen_weights(folder).unlink()
    last = load_module(cfg, chosen_weights(folder)).state_dict()
    assert chosen_weights(folder).name == "last.ckpt"
    assert not all(torch.equal(best[key], last[key]) for key in best)


def test_runs_that_cannot_play_are_named(finished, tmp_path):
    finished("+experiment=regression", "steps=2", "data.num_test_points=64", "pictures=false")
    with pytest.raises(ValueError, match="must hold a distillation, got regression"):
        list(Scoring().score(tmp_path, tmp_path))
    with pytest.raises(ValueError, match="num_episodes must be at least 2, got 1"):
        Scoring(num_episodes=1)
