import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_sobolev.experiments.distillation.animation import ANIMATION, animate
from tests.scripts.conftest import DISTILLATION

SCRIPT = Path(__file__).parents[2] / "scripts" / "animate.py"


def test_a_stored_student_plays_the_game_it_played_at_the_end_of_its_run(finished, tmp_path):
    cfg, _ = finished(*DISTILLATION)
    path = Path(cfg.run_dir) / ANIMATION
    first = path.read_bytes()
    path.unlink()
    assert list(animate(tmp_path, num_frames=20)) == [path]
    assert path.read_bytes() == first
    with Image.open(path) as image:
        assert image.n_frames == 20


def test_a_run_that_is_no_distillation_is_named(finished, tmp_path):
    finished("+experiment=regression", "steps=2", "data.num_test_points=64", "pictures=false")
    with pytest.raises(ValueError, match="must hold a distillation, got regression"):
        list(animate(tmp_path))


def test_script_says_that_there_is_no_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["animate.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"animate\.py: a folder with finished runs"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
