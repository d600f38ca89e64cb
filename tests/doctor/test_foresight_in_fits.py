"""What a fit is told of its derivatives, and what follows."""

import os
import pathlib
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_sobolev import (
    AnalyticTeacher,
    Balanced,
    BatchTeacher,
    DirectionalTeacher,
    Foresight,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    foresight,
)
from tests.plugin._processes import in_two_processes
from tests.plugin._students import Learns, Regressor, mlp
from tests.plugin._trainers import as_loader, trainer, weights

MISLEADS = "they mislead"


def table(frequency, size=40, seed=0):
    """Points of a bowl with ripples: its values and gradients, written out."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(size, 2, generator=generator, dtype=torch.float64) - 1
    y = (x.square() + torch.sin(frequency * x)).sum(1, keepdim=True)
    return x, y, 2 * x + frequency * torch.cos(frequency * x)


def loader(frequency, batch_size=10, **changes):
    return DataLoader(TensorDataset(*table(frequency, **changes)), batch_size=batch_size)


class Student(Learns):
    def __init__(self, lr=0.01, dropout=0.0):
        super().__init__(nn.Sequential(*mlp(2, 1), nn.Dropout(dropout)), lr)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def sobolev(teacher=None, **options):
    teacher = BatchTeacher("2") if teacher is None else teacher
    return SobolevCallback(
        teacher, **{"module": "net", "doctor": False, "labels": "off", **options}
    )


def trained(data, *callbacks, student=None, epochs=5, path=None, validation=None, **options):
    student = Student() if student is None else student
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(*callbacks, max_epochs=epochs, **options).fit(
            student, data, validation, ckpt_path=path
        )
    return student, [str(w.message) for w in caught if "derivatives" in str(w.message)]


def lines(caplog):
    return [line for line in caplog.messages if "derivatives" in line]


def test_a_fit_is_told_once_that_derivatives_should_help(caplog):
    used = sobolev()
    with caplog.at_level("INFO"):
        _, warned = trained(loader(1.0), used)
    x, y, dydx = table(1.0)
    expected = foresight(x, y, dydx)
    assert_close(used.foresight.first_order, expected.first_order)
    assert_close(used.foresight.both_ends, expected.both_ends)
    assert warned == []
    share = f"{expected.both_ends:.0%}"
    (line,) = lines(caplog)
    assert f"at 40 points (values: 1 in the batch) the derivatives explain {share}" in line
    assert line.endswith("they should help")


def test_a_warning_says_once_that_they_mislead_and_changes_nothing():
    used = sobolev()
    student, warned = trained(loader(300.0), used)
    assert used.foresight.harms
    (text,) = warned
    assert MISLEADS in text
    assert "on_mislead='drop'" in text
    assert "Name them (value=)" in text  # the batch was searched for them
    other, silent = trained(loader(300.0), off := sobolev(on_mislead="off"))
    assert silent == []
    assert off.foresight is None
    assert off.loss.witnesses == []
    assert_close(weights(student), weights(other), rtol=0, atol=0)


class AtTheDrop(Callback):
    """Keeps the student and its optimizer as they are when the terms are first left out."""

    def __init__(self, used):
        self.used, self.kept, self.steps = used, None, 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.used.loss.is_dropped:
            return
        optimizer = trainer.optimizers[0]
        state = torch.optim.Optimizer.state_dict(optimizer)
        copied = {
            key: {name: value.clone() for name, value in own.items()}
            for key, own in state["state"].items()
        }
        kept = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.kept, self.steps = (kept, {**state, "state": copied}), trainer.global_step


@pytest.mark.parametrize("weight", [1.0, Balanced(0.5)])
def test_what_misleads_is_dropped_and_the_rest_is_a_plain_training(weight, caplog):
    used = sobolev(spec=SobolevSpec(terms=[SobolevTerm(weight=weight)]), on_mislead="drop")
    before = AtTheDrop(used)
    with caplog.at_level("INFO"):
        student, warned = trained(data := loader(300.0), used, before)
    (line,) = lines(caplog)
    assert MISLEADS in line
    assert "left out from here on" in line
    assert warned == []
    assert used.report.weights == {"order_1": 0.0}
    plain = Student()
    plain.load_state_dict(before.kept[0])
    optimizer = plain.configure_optimizers()
    optimizer.load_state_dict(before.kept[1])
    batches = [batch for _ in range(5) for batch in data]
    assert 4 <= before.steps < len(batches) / 2
    for x, y, _ in batches[before.steps :]:
        optimizer.zero_grad()
        mse_loss(plain(x), y).backward()
        optimizer.step()
    assert_close(weights(student), weights(plain), rtol=0, atol=0)


def test_the_next_fit_has_its_terms_again():
    used = sobolev(on_mislead="drop")
    trained(loader(300.0), used)
    assert used.loss.is_dropped
    trained(loader(1.0), used)
    assert not used.loss.is_dropped
    assert not used.foresight.harms


class Saves(Callback):
    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def test_a_resumed_fit_neither_asks_again_nor_takes_the_terms_up(tmp_path, caplog):
    data, first = loader(300.0), sobolev(on_mislead="drop")
    path = tmp_path / "third.ckpt"
    whole, _ = trained(data, first, Saves(path, 2))
    again = sobolev(on_mislead="drop")
    caplog.clear()
    with caplog.at_level("INFO"):
        student, warned = trained(data, again, path=path)
    assert lines(caplog) == warned == []
    assert again.foresight == first.foresight
    assert_close(weights(student), weights(whole), rtol=0, atol=0)
    kept = sobolev(on_mislead="warn")
    assert trained(data, kept, path=path)[1] == []
    assert not kept.loss.is_dropped


class SavesAt(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_the_rest_of_an_epoch_is_not_taken_for_the_whole(tmp_path):
    path, data = tmp_path / "middle.ckpt", loader(1.0, batch_size=20, size=80)
    trained(data, sobolev(), SavesAt(path, 3), epochs=1)
    used = sobolev(labels="warn")
    trained(data, used, path=path)
    expected = foresight(*table(1.0, size=80))
    assert_close(used.foresight.both_ends, expected.both_ends)
    assert used.label_report.points == 80


def test_a_search_for_a_rate_is_not_the_fit():
    finder = LearningRateFinder(num_training_steps=12)
    used = sobolev(on_mislead="drop")
    trained(loader(300.0), finder, used, student=Student())
    assert used.loss.is_dropped
    assert used.foresight.harms


def test_a_network_with_a_function_behind_it_is_asked_at_few_points():
    asked = []

    def truth(x):
        asked.append(len(x))
        return (x.square() + torch.sin(300 * x)).sum(1, keepdim=True)

    used = sobolev(AnalyticTeacher(truth))
    _, warned = trained(loader(300.0), used)
    assert [MISLEADS in text for text in warned] == [True]
    steps = 20
    assert len(asked) == steps + 1
    assert max(asked) <= 64


class Bare(Student):
    """Numbers without an axis, of numbers without one."""

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0][:, 0]), batch[1][:, 0])


class OfNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(1, 1)

    def forward(self, x):
        return self.body(x[:, None])[:, 0]


def test_numbers_without_an_axis_are_foreseen():
    student, used = Bare(), sobolev(AnalyticTeacher(lambda x: torch.sin(300 * x)))
    student.net = OfNumbers()
    _, warned = trained(loader(300.0), used, student=student)
    assert [MISLEADS in text for text in warned] == [True]


def test_a_teacher_that_cannot_be_asked_once_more_does_not_end_the_fit(caplog):
    asked = []

    def moody(x):
        asked.append(len(x))
        if len(x) != 10:
            raise KeyError("only whole batches")
        return torch.sin(x).sum(1, keepdim=True)

    used = sobolev(AnalyticTeacher(moody))
    with caplog.at_level("INFO"):
        trained(loader(1.0), used)
    assert used.foresight is None
    assert any("nothing was foreseen: 'only whole batches'" in text for text in caplog.messages)


def test_generators_are_left_alone():
    def truth(x):
        return (x * 2).sin().sum(1, keepdim=True)

    found = []
    for on_mislead in ("warn", "off"):
        used = sobolev(AnalyticTeacher(truth), on_mislead=on_mislead)
        student, _ = trained(loader(1.0), used, student=Student(dropout=0.3))
        found.append((weights(student), torch.get_rng_state()))
        assert (used.foresight is None) == (on_mislead == "off")
    assert_close(found[0], found[1], rtol=0, atol=0)


class Restless(nn.Module):
    """Draws from all generators, counts its rows in a buffer, and answers accordingly."""

    def __init__(self):
        super().__init__()
        self.body = mlp(2, 1)
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x):
        self.rows += len(x)
        drawn = torch.rand(()) + random.random() + np.random.rand()
        return self.body(x) * (1 + drawn + 1e-3 * self.rows)


def test_a_teacher_that_draws_and_counts_is_left_as_it_was():
    found = []
    for on_mislead in ("warn", "off"):
        random.seed(0)
        np.random.seed(0)
        used = sobolev(Restless(), on_mislead=on_mislead)
        student, _ = trained(loader(1.0), used)
        assert (used.foresight is None) == (on_mislead == "off")
        drawn = torch.tensor([random.random(), np.random.rand(), torch.rand(())])
        found.append(torch.cat([weights(student), drawn, used.teacher.network.rows[None]]))
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_nothing_is_said_of_few_points_or_of_directions_alone(caplog):
    x, _, dydx = table(300.0)
    v = torch.ones_like(x)
    pushed = [
        {"x": x, "y": x[:, :1], "v": v, "jv": (dydx * v).sum(1, keepdim=True)} for _ in range(9)
    ]

    class Named(Student):
        def training_step(self, batch, batch_idx):
            return Regressor.training_step(self, (batch["x"], batch["y"]), batch_idx)

    directions = DirectionalTeacher(tangents="v", pushed="jv")
    with caplog.at_level("INFO"):
        cases = [
            trained(loader(300.0, size=12), few := sobolev()),
            trained(as_loader(pushed), own := sobolev(directions), student=Named()),
        ]
    assert [warned for _, warned in cases] == [[], []]
    assert few.foresight is own.foresight is None
    assert lines(caplog) == []


def test_points_that_never_come_again_are_a_part_and_no_evidence_of_harm(caplog):
    drawn = as_loader([table(3e4, size=512, seed=seed) for seed in range(9)])
    used = sobolev(on_mislead="drop")
    with caplog.at_level("INFO"):
        _, warned = trained(drawn, used, epochs=1)
    assert used.foresight.harms
    assert warned == []
    assert not used.loss.is_dropped
    (line,) = lines(caplog)
    assert "the first 4096 points" in line
    assert "too far apart to say" in line


def test_points_of_several_axes_are_no_evidence_of_harm(caplog):
    x, y, dydx = table(300.0)
    data = DataLoader(TensorDataset(x[:, None], y, dydx[:, None]), batch_size=10)
    student = Student()
    student.net.insert(0, nn.Flatten())
    used = sobolev(on_mislead="drop")
    with caplog.at_level("INFO"):
        _, warned = trained(data, used, student=student)
    assert used.foresight.harms
    assert warned == []
    assert not used.loss.is_dropped
    (line,) = lines(caplog)
    assert "of several axes do not say whether the derivatives help" in line


class OverNodes(nn.Module):
    """The mean of a network over the axis behind the rows, of any length."""

    def __init__(self):
        super().__init__()
        self.body = mlp(2, 1)

    def forward(self, x):
        return self.body(x).mean(1)


def padded(lengths, stored):
    """Batches of sequences, each padded to a length of its own."""
    batches = []
    for seed, length in enumerate(lengths):
        x, y, dydx = table(300.0, size=10 * length, seed=seed)
        y, dydx = y.reshape(10, length, 1).mean(1), dydx.reshape(10, 1, length, 2) / length
        batches.append((x.reshape(10, length, 2), y, *([dydx] if stored else [])))
    return as_loader(batches)


@pytest.mark.parametrize("stored", [True, False])
def test_points_of_several_sizes_do_not_end_the_fit(stored):
    found = []
    for options in ({}, {"labels": "off", "on_mislead": "off"}):
        teacher = BatchTeacher("2") if stored else OverNodes()
        used, student = sobolev(teacher, **{"labels": "warn", **options}), Student()
        student.net = OverNodes()
        trained(padded([4, 4, 5, 4, 6], stored), used, student=student)
        assert used.foresight is used.label_report is None
        found.append(weights(student))
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_points_that_are_too_large_to_be_kept_do_not_end_the_fit(monkeypatch):
    monkeypatch.setattr("lightning_sobolev.doctor.outlook._MOST_NUMBERS", 1)
    used = sobolev()
    trained(loader(300.0), used)
    assert used.foresight is None


@pytest.mark.parametrize(
    ("step", "looks"),
    [
        ("gather.Gathering.take", {}),
        ("watch.examine_labels", {"on_mislead": "off"}),
        ("outlook.foresight", {"labels": "off"}),
    ],
)
def test_an_examination_that_fails_does_not_end_the_fit(step, looks, monkeypatch, caplog):
    def failing(*_):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(f"lightning_sobolev.doctor.{step}", failing)
    used = sobolev(**{"labels": "warn", **looks})
    with caplog.at_level("INFO"):
        _, warned = trained(loader(1.0), used)
    assert warned == used.loss.witnesses == []
    assert used.foresight is used.label_report is None
    said = [line for line in caplog.messages if line.endswith(": not enough memory")]
    assert len(said) == (1 if looks else 2)


def test_points_of_a_validation_are_no_points_of_the_fit():
    class Validated(Student):
        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

    used = sobolev(validate=True)
    trained(loader(1.0), used, student=Validated(), validation=loader(300.0, seed=1))
    assert_close(used.foresight.both_ends, foresight(*table(1.0)).both_ends)


def test_a_line_search_counts_a_step_once():
    class Searching(Student):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=3, line_search_fn="strong_wolfe")

    used = sobolev(spec=SobolevSpec(terms=[SobolevTerm(projection="basis", num_projections=None)]))
    trained(loader(1.0, batch_size=20), used, student=Searching(), epochs=3)
    assert_close(used.foresight.both_ends, foresight(*table(1.0)).both_ends)


def several(path):
    """Train in two processes that share some of their points; store what came of it."""
    found = []
    for frequency in (300.0, 1.0):
        used = sobolev(on_mislead="drop")
        options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
        own = slice(24) if os.environ["LOCAL_RANK"] == "0" else slice(16, 40)
        part = TensorDataset(*(column[own] for column in table(frequency)))
        trained(DataLoader(part, batch_size=8), used, epochs=3, **options)
        ranks = [None, None]
        torch.distributed.all_gather_object(ranks, (used.foresight, used.loss.is_dropped))
        found.append([ranks, used.loss.witnesses])
    unlike(used)
    if torch.distributed.get_rank() == 0:
        pathlib.Path(path).write_text(repr(found))
    torch.distributed.destroy_process_group()


def unlike(used):
    """Train on sequences that are of another length in each process."""
    used.teacher, student = BatchTeacher("2"), Student()
    student.net = OverNodes()
    own = [4, 4] if os.environ["LOCAL_RANK"] == "0" else [5, 5]
    trained(padded(own, stored=True), used, student=student, devices=2, strategy="ddp")
    assert used.foresight is None


@pytest.mark.slow
def test_processes_decide_alike_from_all_of_their_points(tmp_path):
    in_two_processes([sys.executable, "-m", __name__, str(tmp_path / "found")])
    names = {"Foresight": Foresight, "inf": float("inf")}
    harmed, helped = eval((tmp_path / "found").read_text(), names)
    for frequency, is_dropped, (ranks, left) in ((300.0, True, harmed), (1.0, False, helped)):
        expected = foresight(*table(frequency))
        for found, own in ranks:
            assert_close(found.both_ends, expected.both_ends)
            assert own == is_dropped
        assert left == []


def test_what_follows_is_one_of_three_words():
    with pytest.raises(ValueError, match=r"on_mislead must be .*warn.*drop.*off.*, got 'stop'"):
        sobolev(on_mislead="stop")


def test_older_checkpoints_know_of_no_foresight():
    used = sobolev()
    state = used.state_dict()
    assert not state.keys() & {"foresight", "dropped"}
    used.foresight = Foresight(1.0, 1.0, 0.0, 0.0)
    used.load_state_dict(state)
    assert used.foresight is None
    assert not used.loss.is_dropped


if __name__ == "__main__":
    several(sys.argv[1])
