import json
from pathlib import Path

import pytest
import torch

from lightning_sobolev.atari import NatureCNN
from lightning_sobolev.experiments.run.train import run
from tests.scripts.test_train import PONG


def test_somebody_elses_teacher_is_replayed_and_distilled(composed, tmp_path):
    file = tmp_path / "policy.pt"
    torch.manual_seed(0)
    torch.save(NatureCNN(6).state_dict(), file)
    theirs = (*PONG, "sizes.smoke.num_episodes=0", "pictures=false", "teacher=sb3")
    theirs += (f"teacher.agent.source={file}", "teacher.verify.num_episodes=2")
    cfg = composed(*theirs, "teacher.verify.min_return=18", name="refused")
    with pytest.raises(ValueError, match=r"must return at least 18 in pong"):
        run(cfg)
    assert not (Path(cfg.data.root) / "pong").exists()
    cfg = composed(*theirs, "teacher.verify.min_return=-21")
    metrics = run(cfg)
    assert -21 <= metrics["verify/teacher_return"] < 0
    card = json.loads((Path(cfg.run_dir) / "teacher.json").read_text())
    assert card["source"]["file"] == str(file)
    assert card["environment"]["max_num_frames_per_episode"] == 400


def test_a_module_that_draws_its_weights_is_refused(composed):
    module = "teacher.agent.module"
    target = f"{module}._target_=lightning_sobolev.atari.NatureCNN"
    cfg = composed(*PONG, "teacher=module", target, f"+{module}.num_actions=6")
    with pytest.raises(ValueError, match="must load its weights, not draw them"):
        run(cfg)
