import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close

from lightning_sobolev.atari import Behavior, RecordingDataModule, Rounds, SmallCNN, recorder
from lightning_sobolev.atari.recording import fingerprint
from lightning_sobolev.atari.states import STRIDE
from lightning_sobolev.experiments.run.saving import SaveLast

SIZES = {"num_states": 120, "num_validation_states": 16, "num_test_states": 16}


class Student(pl.LightningModule):
    """Learns from every batch and notes which states it was given."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = SmallCNN(6).to(torch.float32)
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["index"].numpy())
        log_probs = self.net(batch["x"].float() / 255).log_softmax(-1)
        return -(batch["log_probs"].exp() * log_probs).sum(-1).mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Interrupt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def build(root, settings, teacher):
    def build_(**changes):
        options = {"batch_size": 8, "rounds": 3, "round_states": 60, **SIZES, **changes}
        return RecordingDataModule(options.pop("root", root), settings, teacher, **options)

    return build_


def fit(data, folder, callbacks=(), ckpt_path=None, max_steps=8, **options):
    student = Student()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=[*callbacks, SaveLast(folder, every_n_steps=100)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(student, data, ckpt_path=ckpt_path, weights_only=True)
    return student, trainer


def parts(seen):
    return [set(np.unique(index // STRIDE)) for index in seen]


def test_every_round_trains_on_what_was_visited_before_it(build, tmp_path):
    data = build()
    student, _ = fit(data, tmp_path)
    # 8 steps in 3 rounds: 3, 3 and 2
    assert len(student.seen) == 8
    early, middle, late = (np.concatenate(student.seen[a:b]) // STRIDE for a, b in THIRDS)
    assert set(early) == {0}
    assert set(middle) == {0, 1}
    assert set(late) == {0, 1, 2}
    assert data.num_train_states == 120 + 2 * 60


THIRDS = ((0, 3), (3, 6), (6, 8))


def test_the_student_of_the_round_plays_other_games_than_the_teacher(build, tmp_path, teacher):
    before = []
    keep = Keep(before)
    data = build()
    fit(data, tmp_path, [keep])
    for number, recording in enumerate(data.visits.recordings, 1):
        assert recording.identity["player_sha256"] == before[number]
        assert recording.identity["teacher_sha256"] == fingerprint(teacher)
        assert recording.identity["seed"] == number
        assert recording.identity["behavior"]["beta"] == 0.0
        assert recording.num_states == 60


class Keep(Callback):
    """Note the student's weights at the start of every epoch."""

    def __init__(self, before):
        self.before = before

    def on_train_epoch_start(self, trainer, pl_module):
        self.before.append(fingerprint(pl_module.net))


def test_batches_hold_what_their_index_names(build, tmp_path):
    data = build()
    fit(data, tmp_path)
    dataset = data._dataset("train")
    batch = dataset[np.arange(0, len(dataset), 7)]
    for x, log_probs, index in zip(*batch.values(), strict=True):
        part, row = divmod(int(index), STRIDE)
        recording = dataset.recordings[part]
        np.testing.assert_array_equal(x, recording.stacks(np.array([row]))[0])
        np.testing.assert_array_equal(log_probs, recording.log_probs[row])


def test_a_fraction_is_taken_of_every_round(build, tmp_path):
    data = build(fraction=0.25)
    fit(data, tmp_path)
    index = data._dataset("train").index
    assert np.bincount(index // STRIDE).tolist() == [30, 15, 15]
    first, second = (index[index // STRIDE == part] % STRIDE for part in (1, 2))
    assert not np.array_equal(first, second)


def test_the_teachers_share_fades(build, tmp_path):
    data = build(beta=0.5)
    fit(data, tmp_path)
    shares = [one.identity["behavior"]["beta"] for one in data.visits.recordings]
    assert shares == [0.5, 0.25]


def test_one_round_is_what_there_was_before(build, tmp_path):
    plain = build(rounds=1, steps_per_epoch=4)
    student, trainer = fit(plain, tmp_path)
    assert all(part == {0} for part in parts(student.seen))
    assert plain.state_dict() == {}
    assert not list(tmp_path.glob("*_rounds"))
    assert trainer.reload_dataloaders_every_n_epochs == 0


@pytest.fixture(scope="module")
def straight(root, settings, teacher, tmp_path_factory):
    """A training that nothing disturbed."""
    data = RecordingDataModule(
        root, settings, teacher, batch_size=8, rounds=3, round_states=60, **SIZES
    )
    return fit(data, tmp_path_factory.mktemp("straight"))[0]


def assert_same(resumed, straight):
    taken = straight.seen[len(straight.seen) - len(resumed.seen) :]
    for found, expected in zip(resumed.seen, taken, strict=True):
        np.testing.assert_array_equal(found, expected)
    for name, weight in straight.state_dict().items():
        assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_an_interrupted_training_goes_on_as_if_never_stopped(build, root, straight, tmp_path, step):
    visited = sorted((root / "pong_rounds").iterdir())
    with pytest.raises(SystemExit):
        fit(build(), tmp_path, [Interrupt(step)])
    resumed, _ = fit(build(), tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert len(resumed.seen) == 8 - step
    assert_same(resumed, straight)
    # nothing was visited that the undisturbed training did not visit
    assert sorted((root / "pong_rounds").iterdir()) == visited


def test_a_play_that_was_interrupted_is_continued(build, straight, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(recorder, "rank_zero_info", messages.append)
    original = recorder.write_chunk
    with monkeypatch.context() as patch:
        patch.setattr(recorder.record, "__kwdefaults__", {**DEFAULTS, "chunk_steps": 10})
        patch.setattr(recorder, "write_chunk", stops_after(original, 12))
        with pytest.raises(SystemExit):
            fit(build(root=tmp_path), tmp_path)
    resumed, _ = fit(build(root=tmp_path), tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert any("going on after" in message for message in messages)
    assert len(resumed.seen) == 5
    assert_same(resumed, straight)


DEFAULTS = recorder.record.__kwdefaults__


def stops_after(original, count):
    written = []

    def write_chunk(*arguments):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(original(*arguments))

    return write_chunk


def test_a_second_training_has_its_own_student_play(build, tmp_path):
    data = build()
    fit(data, tmp_path, max_steps=8)
    first = [one.folder for one in data.visits.recordings]
    fit(data, tmp_path, max_steps=5)
    assert len(data.visits.recordings) == 2
    assert first[0] != data.visits.recordings[0].folder


def test_epochs_that_are_cut_short_are_no_more_rounds(build, tmp_path):
    data = build()
    student, _ = fit(data, tmp_path, limit_train_batches=1, max_steps=5)
    assert parts(student.seen)[0] == {0}
    assert len(data.visits.recordings) == 2


def test_the_trainer_is_left_as_it_was(build, tmp_path):
    _, trainer = fit(build(), tmp_path)
    assert trainer.reload_dataloaders_every_n_epochs == 0


def test_visits_that_are_gone_are_named(build, tmp_path):
    data = build(root=tmp_path)
    fit(data, tmp_path, max_steps=8)
    state = data.state_dict()
    assert len(state["visits"]) == 2
    data.visits.recordings[0].folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"must hold what the student .* visited, it is gone"):
        build(root=tmp_path).load_state_dict(state)


def test_a_checkpoint_of_other_rounds_is_refused(build, tmp_path):
    with pytest.raises(SystemExit):
        fit(build(), tmp_path, [Interrupt(4)])
    with pytest.raises(ValueError, match="ckpt must come from a run with as many rounds and steps"):
        fit(build(), tmp_path, ckpt_path=tmp_path / "last.ckpt", max_steps=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number >= 1, got 0"),
        ({"round_states": 0}, "round_states must be a whole number >= 1, got 0"),
        ({"fraction": 0.1, "round_states": 4}, "fraction must leave a state of 4, got 0.1"),
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1.0"),
        ({"behavior": Behavior(beta=0.5)}, "player must be given exactly"),
    ],
)
def test_bad_numbers_are_refused(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"student": "policy"}, {}, "student must name a submodule of Student, got 'policy'"),
        ({}, {"max_steps": 2}, "max_steps of the trainer must be at least the 3 rounds, got 2"),
    ],
)
def test_what_cannot_be_trained_in_rounds_is_refused(build, tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        fit(build(**change), tmp_path, **options)


def test_a_round_knows_its_behavior():
    rounds = Rounds(number=3, beta=0.5)
    plain = Behavior(temperature=2.0)
    assert rounds.behavior(2, plain) == Behavior(temperature=2.0, beta=0.25)
