"""Distillations in the real game, cut short, and what is done with their students afterwards."""

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch.testing import assert_close

from lightning_sobolev.atari import NatureCNN
from lightning_sobolev.experiments.distillation.figures import VIDEO
from lightning_sobolev.experiments.distillation.stored import TABLE, film_stored, play_stored
from lightning_sobolev.experiments.run.stored import load_module
from lightning_sobolev.experiments.run.train import run
from tests.scripts.conftest import DISTILLATION

GAMES = "sizes.smoke.num_episodes=2"
QUICK = (*DISTILLATION, "pictures=false")


def kl_of(cfg, checkpoint):
    module, datamodule = instantiate(cfg.module), instantiate(cfg.data)
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    return trainer.test(module, datamodule=datamodule, verbose=False)[0]["test/kl"]


def test_a_distillation_tests_its_best_student_which_plays_the_same_afterwards(finished, tmp_path):
    # Best turned round, so that it is not the last: the student gets better all the time.
    learns = ("steps=6", "val_every=1", "log_every=1", "callbacks=best", "score.mode=max")
    cfg, metrics = finished(*DISTILLATION, GAMES, *learns)
    runs = tmp_path / "runs"
    folder = Path(cfg.run_dir).rename(runs / "0")  # as a sweep calls it
    measured = ["action_disagreement", "merged_disagreement", "derivative_nmse"]
    measured += ["derivative_cosine", "visited_kl", "visited_disagreement"]
    assert {f"test/{name}" for name in measured} <= set(metrics)
    assert metrics["train_states"] == 128
    curve = pd.read_csv(folder / "curves.csv").set_index("step")["val/kl"]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == curve.idxmax() < 6
    assert metrics["test/kl"] == pytest.approx(kl_of(cfg, folder / "checkpoints" / "best.ckpt"))
    for name, weight in load_module(folder).state_dict().items():
        assert_close(weight, best["state_dict"][name], rtol=0, atol=0)

    (table,) = play_stored(runs, runs, num_episodes=2)
    assert table == runs / TABLE
    lines = pd.read_csv(table)
    assert list(lines["actions"]) == ["sampled", "greedy"]
    assert set(lines["run"].astype(str)) == {"0"}
    assert set(lines["student"]) == {"small"}
    for (_, line), way in zip(lines.iterrows(), ("", "_greedy"), strict=True):
        for who in ("student", "teacher"):
            for column, ending in (("return", ""), ("error", "_standard_error")):
                wanted = metrics[f"test/{who}_return{way}{ending}"]
                assert line[f"{who}_{column}"] == pytest.approx(wanted, rel=1e-5)

    # what the table holds is not played again
    first = table.read_text()
    assert list(play_stored(runs, runs, num_episodes=2)) == []
    assert table.read_text() == first
    for games in ({"num_episodes": 3}, {"num_episodes": 2, "seed": 1}):
        assert len(list(play_stored(runs, runs, **games))) == 1
    lines = pd.read_csv(table)[["episodes", "games_seed"]].to_numpy()
    np.testing.assert_array_equal(lines[::2], [[2, 1000], [3, 1000], [2, 1]])

    first = (folder / VIDEO).read_bytes()
    assert (folder / "saliency.png").is_file()
    (folder / VIDEO).unlink()
    assert list(film_stored(runs, num_frames=20)) == [folder / VIDEO]
    assert (folder / VIDEO).read_bytes() == first
    with Image.open(folder / VIDEO) as image:
        assert image.n_frames == 20


def test_runs_that_cannot_play_are_named(tmp_path):
    notes = tmp_path / "run" / ".hydra"
    notes.mkdir(parents=True)
    (tmp_path / "run" / "metrics.json").write_text("{}")
    (notes / "config.yaml").write_text("module: {_target_: somebody.RegressionModule}")
    (notes / "overrides.yaml").write_text("[]")
    (notes / "hydra.yaml").write_text("hydra: {runtime: {choices: {}}}")
    for use in (film_stored(tmp_path), play_stored(tmp_path, tmp_path)):
        with pytest.raises(ValueError, match=r"must be a run of DistillationModule, got .*Regress"):
            list(use)
    with pytest.raises(ValueError, match="num_episodes must be at least 2, got 1"):
        list(play_stored(tmp_path, tmp_path, num_episodes=1))


def test_somebody_elses_teacher_is_replayed_and_distilled(composed, tmp_path):
    file = tmp_path / "policy.pt"
    torch.manual_seed(0)
    torch.save(NatureCNN(6).state_dict(), file)
    theirs = (*QUICK, "teacher=sb3", f"teacher.agent.source={file}", "verify.num_episodes=2")
    cfg = composed(*theirs, "verify.min_return=18", name="refused")
    with pytest.raises(ValueError, match=r"must return at least 18 in pong"):
        run(cfg)
    assert not (Path(cfg.data.root) / "pong").exists()
    cfg = composed(*theirs, "verify.min_return=-21")
    metrics = run(cfg)
    assert -21 <= metrics["verify/teacher_return"] < 0
    card = json.loads((Path(cfg.run_dir) / "teacher.json").read_text())
    assert card["source"]["file"] == str(file)
    assert card["environment"]["max_num_frames_per_episode"] == 400


def test_a_module_that_draws_its_weights_is_refused(composed):
    module = "teacher.agent.module"
    target = f"{module}._target_=lightning_sobolev.atari.NatureCNN"
    cfg = composed(*QUICK, "teacher=module", target, f"+{module}.num_actions=6")
    with pytest.raises(ValueError, match="must load its weights, not draw them"):
        run(cfg)
    assert not (Path(cfg.data.root) / "pong").exists()


def test_dagger_adds_what_the_student_visits(composed):
    quick = (*QUICK, "steps=4", "data.fraction=0.5")
    dagger = ("callbacks=dagger", "callbacks.dagger.rounds=2", "callbacks.dagger.num_states=600")
    cfg = composed(*quick, *dagger)
    metrics = run(cfg)
    assert metrics["train_states"] == 64 + 300
    assert 0 < metrics["test/visited_kl"] < 3
    (index,) = (Path(cfg.data.root) / "pong_dagger").glob("*/index.json")
    # the recordings that a run leaves can be trained on as they are
    folders = f"data.folders=[pong,{index.parent}]"
    stored = composed(*quick, "data=stored", "data.sizes.train=128", folders, name="stored")
    assert run(stored)["train_states"] == 64
