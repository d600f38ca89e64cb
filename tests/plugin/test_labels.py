"""Stored labels are examined in the first steps of a fit, which goes on as it would have."""

import logging
import pickle
import warnings

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_sobolev import BatchTeacher, NetworkTeacher, SobolevCallback, examine_labels
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, weights

QUIET_SOBOLEV = {"module": "net", "doctor": False}


def labeled(sign=1.0, points=60, batch_size=10, shuffle=False, others=()):
    x = torch.rand(points, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    y = torch.stack([(x**2).sum(1), torch.sin(x[:, 0]) + x[:, 1]], 1)
    zero = torch.zeros_like(x[:, 0])
    rows = [2 * x, torch.stack([torch.cos(x[:, 0]), zero + 1, zero], 1)]
    columns = (x, y, sign * torch.stack(rows, 1), *others)
    return DataLoader(TensorDataset(*columns), batch_size=batch_size, shuffle=shuffle)


class Student(Regressor):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


def run(loader, teacher=None, epochs=1, student=None, **options):
    teacher = BatchTeacher(jacobian=2) if teacher is None else teacher
    callback = SobolevCallback(teacher, **{**QUIET_SOBOLEV, **options})
    student = Student() if student is None else student
    fit(student, loader, callback, max_epochs=epochs)
    return callback, student


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")
    return lambda: [r.message for r in caplog.records if "labels:" in r.message]


@pytest.mark.parametrize("teacher", [{"jacobian": 2}, {"jacobian": 2, "value": 1}])
def test_right_labels_are_one_line_of_the_log(said, teacher):
    callback, _ = run(labeled(), BatchTeacher(**teacher))
    (line,) = said()
    assert "they are the derivatives of the values" in line
    assert "\n" not in line
    assert callback.label_report.finding == "right"


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_the_wrong_sign_is_one_warning_that_names_the_remedies(engine):
    with pytest.warns(UserWarning, match="labels: the wrong sign") as caught:
        callback, _ = run(labeled(-1.0), epochs=8, engine=engine)
    (text,) = [str(w.message) for w in caught if "labels" in str(w.message)]
    assert "forces=" in text
    assert callback.label_report.factor == -1.0
    with pytest.warns(UserWarning, match="scale="):
        run(labeled(100.0))


def test_raise_stops_the_fit_and_leaves_the_module_as_it_was():
    student = Student()
    with pytest.raises(ValueError, match="the wrong sign"):
        run(labeled(-1.0), epochs=100, student=student, labels="raise")
    assert "training_step" not in vars(student)
    assert student.trainer.global_step < 40


def test_off_does_not_look(said):
    callback, _ = run(labeled(-1.0), labels="off")
    assert callback.label_report is None
    assert not said()
    with pytest.raises(ValueError, match="labels must be 'warn', 'raise' or 'off'"):
        run(labeled(), labels="ask")


def test_too_few_points_and_fast_dev_run_say_nothing(said):
    run(labeled(-1.0, points=20), epochs=5, on_mislead="off")
    callback = SobolevCallback(BatchTeacher(jacobian=2), **QUIET_SOBOLEV)
    fit(Student(), labeled(-1.0, batch_size=60), callback, fast_dev_run=3)
    assert not said()
    assert callback.label_report is None


def test_points_that_come_again_are_no_new_evidence():
    callback, _ = run(labeled(), epochs=7)
    assert callback.label_report.points == 60


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_training_is_the_same_to_the_bit(shuffle):
    found = []
    for labels in ("warn", "off"):
        torch.manual_seed(3)
        _, student = run(labeled(shuffle=shuffle), epochs=3, labels=labels)
        found.append((weights(student), torch.random.get_rng_state()))
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_the_report_is_that_of_the_arrays():
    loader = labeled()
    callback, _ = run(loader)
    direct = examine_labels(*loader.dataset.tensors)
    assert_close(callback.label_report.slope, direct.slope, rtol=1e-12, atol=0)
    assert_close(callback.label_report.error, direct.error, rtol=1e-12, atol=0)


def test_values_that_may_be_others_are_not_guessed(said):
    other = torch.randn(60, 2, generator=torch.Generator().manual_seed(1)).double()
    callback, _ = run(labeled(-1.0, others=(other,)))
    assert callback.label_report is None
    assert not said()


def test_other_teachers_are_passed_over(said):
    callback, _ = run(labeled(), NetworkTeacher(mlp(seed=5)))
    assert callback.label_report is None
    assert not said()


def beside(kind):
    def collate(rows):
        x, y, jacobian = default_collate(rows)
        if kind == "sparse":
            return x, y, jacobian, y.to_sparse()
        if kind == "meta":
            return x, y, jacobian, y.to("meta")
        layout = torch.strided if kind == "nested" else torch.jagged
        return x, y, jacobian, torch.nested.nested_tensor(list(y), layout=layout)

    return collate


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "meta", "nested", "jagged"])
def test_tensors_of_other_kinds_in_the_batch_are_passed_over(kind):
    loader = DataLoader(labeled().dataset, batch_size=10, collate_fn=beside(kind))
    student = Student()
    student.transfer_batch_to_device = lambda batch, *_: batch
    callback, _ = run(loader, student=student, epochs=2)
    assert callback.label_report.finding == "right"
    assert callback.foresight is not None


def test_nothing_of_it_outlives_the_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback, _ = run(labeled(-1.0))
    assert not callback.loss.witnesses
    assert pickle.loads(pickle.dumps(callback)).label_report.finding == "sign"
