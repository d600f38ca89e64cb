import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_sobolev.atari import AtariSettings, SmallCNN, visit
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.distillation.visiting import CompareVisited
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.teachers import NetworkTeacher

SETTINGS = AtariSettings("pong", num_envs=3, max_num_frames_per_episode=60)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [SmallCNN(6).to(torch.float32).eval() for _ in range(2)]


def finished(network, tmp_path):
    module = DistillationModule(network) if isinstance(network, SmallCNN) else network
    return FinishedRun(module, None, tmp_path)


def test_means_and_errors_are_over_games(networks, tmp_path):
    student, teacher = networks
    closing = CompareVisited(SETTINGS, NetworkTeacher(teacher), num_states=60, seed=7)
    found = closing(finished(student, tmp_path))
    answers = visit(student, teacher, SETTINGS, num_states=60, seed=7)
    p, q = (one.astype(np.float64) for one in (answers.teacher, answers.player))
    games = (np.exp(p) * (p - q)).sum(-1).mean(0)
    assert found["test/visited_kl"] == pytest.approx(games.mean())
    error = games.std(ddof=1) / math.sqrt(3)
    assert found["test/visited_kl_standard_error"] == pytest.approx(error)
    differ = (p.argmax(-1) != q.argmax(-1)).mean()
    assert found["test/visited_disagreement"] == pytest.approx(differ)


def test_a_student_that_is_the_teacher_never_differs(networks, tmp_path):
    teacher = networks[0]
    single = replace(SETTINGS, num_envs=1)
    closing = CompareVisited(single, NetworkTeacher(teacher), num_states=8, seed=0)
    found = closing(finished(teacher, tmp_path))
    assert found["test/visited_kl"] == pytest.approx(0.0, abs=1e-7)
    assert found["test/visited_disagreement"] == 0.0
    assert math.isnan(found["test/visited_kl_standard_error"])


def test_nothing_is_visited_where_nothing_is_asked(networks, tmp_path):
    closing = CompareVisited(SETTINGS, NetworkTeacher(networks[0]), num_states=0, seed=0)
    assert closing(finished(networks[1], tmp_path)) == {}


def test_what_cannot_be_compared_is_named(networks, tmp_path):
    teacher = NetworkTeacher(networks[0])
    with pytest.raises(ValueError, match="num_states must be at least 0, got -1"):
        CompareVisited(SETTINGS, teacher, num_states=-1, seed=0)
    other = RegressionModule(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="needs a DistillationModule, got RegressionModule"):
        CompareVisited(SETTINGS, teacher, num_states=4, seed=0)(finished(other, tmp_path))
