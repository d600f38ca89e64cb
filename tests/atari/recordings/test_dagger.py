import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close

from lightning_sobolev.atari import (
    Behavior,
    DAgger,
    RecordingDataModule,
    RecordingOptions,
    SplitSizes,
)
from lightning_sobolev.atari.recordings import format as stored
from lightning_sobolev.atari.recordings import record as recording_module
from lightning_sobolev.atari.recordings.dataset import STRIDE
from lightning_sobolev.atari.recordings.format import fingerprint
from tests.atari.recordings._training import StopIn, Stopped, Student, fit

SIZES = SplitSizes(train=120, validation=16, test=16)
THIRDS = ((0, 3), (3, 6), (6, 8))
"""8 steps in 3 rounds."""


class Keep(Callback):
    def __init__(self):
        self.before = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before.append(fingerprint(pl_module.net))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def build(root, settings, teacher):
    def build_(**changes):
        options = {"batch_size": 8, "sizes": SIZES, **changes}
        return RecordingDataModule(options.pop("root", root), settings, teacher, **options)

    return build_


def test_every_round_trains_on_what_was_visited_before_it(build, tmp_path, teacher):
    data, dagger, keep = build(), DAgger(3, num_states=60), Keep()
    student = fit(data, tmp_path, keep, dagger)
    assert len(student.seen) == 8
    early, middle, late = (np.array(student.seen[a:b]).ravel() // STRIDE for a, b in THIRDS)
    assert (set(early), set(middle), set(late)) == ({0}, {0, 1}, {0, 1, 2})
    assert data.num_train_states == 120 + 2 * 60
    for number, recording in enumerate(dagger.visited, 1):
        # the student as it was when the round began, in other games than the teacher's
        assert recording.identity["player_sha256"] == keep.before[number]
        assert recording.identity["teacher_sha256"] == fingerprint(teacher)
        assert recording.identity["seed"] == number
        assert recording.identity["behavior"]["beta"] == 0.0
        assert recording.num_states == 60
    dataset = data.train_dataloader().dataset
    batch = dataset[torch.arange(0, len(dataset), 7)]
    for x, log_probs, index in zip(*batch.values(), strict=True):
        part, row = divmod(int(index), STRIDE)
        np.testing.assert_array_equal(x, dataset.recordings[part].stacks(np.array([row]))[0])
        np.testing.assert_array_equal(log_probs, dataset.recordings[part].log_probs[row])


def test_a_fraction_is_taken_of_every_round_and_the_teachers_share_fades(build, tmp_path):
    options = RecordingOptions(behavior=Behavior(temperature=2.0), seed=4)
    data = build(fraction=0.25, recording=options, root=tmp_path)
    dagger = DAgger(3, num_states=60, beta=0.5)
    fit(data, tmp_path, dagger)
    index = data.train_dataloader().dataset.index
    assert np.bincount(index // STRIDE).tolist() == [30, 15, 15]
    first, second = (index[index // STRIDE == part] % STRIDE for part in (1, 2))
    assert not np.array_equal(first, second)
    kept = {"temperature": 2.0, "epsilon": 0.0, "greedy": False}
    for one, beta, seed in zip(dagger.visited, (0.5, 0.25), (5, 6), strict=True):
        assert one.identity["behavior"] == {**kept, "beta": beta}
        assert one.identity["seed"] == seed


def test_one_round_is_training_without_it(build, tmp_path):
    assert fit(build(), tmp_path).seen == fit(build(), tmp_path, DAgger(1)).seen


@pytest.fixture(scope="module")
def straight(root, settings, teacher, tmp_path_factory):
    data = RecordingDataModule(root, settings, teacher, batch_size=8, sizes=SIZES)
    return fit(data, tmp_path_factory.mktemp("straight"), DAgger(3, num_states=60))


def assert_same(resumed, straight):
    assert resumed.seen == straight.seen[len(straight.seen) - len(resumed.seen) :]
    for name, weight in straight.state_dict().items():
        assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_an_interrupted_training_goes_on_as_if_never_stopped(build, root, straight, tmp_path, step):
    visited = sorted((root / "pong_dagger").iterdir())
    with pytest.raises(Stopped):
        fit(build(), tmp_path, StopIn(step), DAgger(3, num_states=60))
    resumed = fit(build(), tmp_path, DAgger(3, num_states=60), ckpt_path=tmp_path / "last.ckpt")
    assert len(resumed.seen) == 8 - step
    assert_same(resumed, straight)
    # nothing was visited that the undisturbed training did not visit
    assert sorted((root / "pong_dagger").iterdir()) == visited


class SaveEvery(Callback):
    """Checkpoints after steps, the last of an epoch among them."""

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{trainer.global_step}.ckpt")


@pytest.mark.parametrize("step", [3, 4])
def test_a_training_goes_on_after_a_step(build, straight, tmp_path, step):
    fit(build(), tmp_path, SaveEvery(), DAgger(3, num_states=60))
    dagger = DAgger(3, num_states=60)
    resumed = fit(build(), tmp_path, dagger, ckpt_path=tmp_path / f"{step}.ckpt")
    assert len(dagger.visited) == 2
    assert_same(resumed, straight)


def test_a_play_that_was_interrupted_is_continued(build, tmp_path, monkeypatch):
    written, write = [], stored.write_shard

    def stops(*arguments):
        if len(written) == 5:  # three of the teacher's and two of three of the student's
            raise Stopped
        written.append(write(*arguments))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(stored, "write_shard", stops)
        with pytest.raises(Stopped):
            fit(build(root=tmp_path), tmp_path, SaveEvery(), DAgger(2, num_states=150))
    messages = []
    monkeypatch.setattr(recording_module, "rank_zero_info", messages.append)
    dagger = DAgger(2, num_states=150)
    fit(build(root=tmp_path), tmp_path, dagger, ckpt_path=tmp_path / "3.ckpt")
    assert [message.split(": ")[1] for message in messages] == ["going on after 120 states."]


def test_a_second_training_has_its_own_student_play(build, tmp_path):
    data, dagger = build(), DAgger(3, num_states=60)
    fit(data, tmp_path, dagger)
    first = [one.folder for one in dagger.visited]
    fit(data, tmp_path, dagger, max_steps=5)
    assert len(dagger.visited) == 2
    assert data.num_train_states == 240
    assert first[0] != dagger.visited[0].folder


def test_epochs_that_are_cut_short_are_no_more_rounds(build, tmp_path):
    dagger = DAgger(3, num_states=60)
    fit(build(), tmp_path, dagger, limit_train_batches=1, max_steps=5)
    assert len(dagger.visited) == 2


def test_a_checkpoint_that_does_not_fit_is_refused(build, tmp_path):
    data = build(root=tmp_path)
    with pytest.raises(Stopped):
        fit(data, tmp_path, StopIn(4), DAgger(3, num_states=60))
    again = {"ckpt_path": tmp_path / "last.ckpt"}
    with pytest.raises(ValueError, match="ckpt must come from a run with rounds of 7 batches, got"):
        fit(data, tmp_path, DAgger(3, num_states=60), max_steps=20, **again)
    (tmp_path / "pong_dagger").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no recording at .*pong_dagger"):
        fit(data, tmp_path, DAgger(3, num_states=60), **again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number >= 1, got 0"),
        ({"num_states": 0}, "num_states must be a whole number >= 1, got 0"),
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DAgger(**options)


@pytest.mark.parametrize(
    ("dagger", "max_steps", "message"),
    [
        ({"student": "policy"}, 8, "student must name a submodule, got 'policy' .*Student"),
        ({}, 2, "max_steps of the trainer must be at least the 3 rounds, got 2"),
        ({"num_states": 1}, 8, "fraction must leave a state of 1, got 0.1"),
    ],
)
def test_what_cannot_be_trained_in_rounds_is_refused(build, tmp_path, dagger, max_steps, message):
    student = Student()
    with pytest.raises(ValueError, match=message):
        fit(
            build(fraction=0.1), tmp_path, DAgger(3, **dagger), student=student, max_steps=max_steps
        )
    assert student.seen == []


def test_other_data_are_refused(tmp_path):
    data = pl.LightningDataModule.from_datasets(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="or PolicyDataModule for DAgger, got Lightning"):
        fit(data, tmp_path, DAgger(3))
