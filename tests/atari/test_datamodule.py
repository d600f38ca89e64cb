import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, RecordingDataModule, scale_pixels

SIZES = {"num_states": 240, "num_validation_states": 20, "num_test_states": 50}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def build(root, settings, teacher):
    def build_(prepare=True, **changes):
        options = {"batch_size": 8, "steps_per_epoch": 6, **SIZES, **changes}
        data = RecordingDataModule(
            options.pop("root", root),
            options.pop("settings", settings),
            options.pop("teacher", teacher),
            **options,
        )
        if prepare:
            data.prepare_data()
            data.setup()
        return data

    return build_


def indices(loader):
    return torch.cat([batch["index"] for batch in loader]).numpy()


def test_batches_hold_stacks_and_the_teachers_answers(build, teacher):
    data = build()
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    for batch in batches:
        assert batch["x"].shape == (8, 4, 84, 84)
        assert batch["x"].dtype == torch.uint8
        assert batch["index"].dtype == torch.int64
        with torch.no_grad():
            expected = teacher(scale_pixels(batch["x"])).log_softmax(-1)
        assert_close(batch["log_probs"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(batch["x"], data.recording.stacks(batch["index"].numpy()))


def test_parts_come_from_different_episodes(build):
    data = build(steps_per_epoch=60)
    episodes = data.recording.episodes
    train, validation, test = (
        indices(loader)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    parts = [set(episodes[rows]) for rows in (train, validation, test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert (len(np.unique(train)), len(validation), len(test)) == (240, 20, 50)


def test_a_fraction_is_part_of_a_larger_one(build):
    parts = [
        set(indices(build(fraction=f, steps_per_epoch=60).train_dataloader()))
        for f in (0.1, 0.5, 1)
    ]
    assert [len(part) for part in parts] == [24, 120, 240]
    assert parts[0] < parts[1] < parts[2]


def test_the_same_request_gives_the_same_states_from_a_longer_recording(build, tmp_path):
    before = build(root=tmp_path)
    first = indices(before.train_dataloader())
    build(root=tmp_path, num_states=500)
    after = build(root=tmp_path)
    assert after.recording.num_states > before.recording.num_states
    np.testing.assert_array_equal(indices(after.train_dataloader()), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": 0.02}, r"batch_size must be in 1\.\.5 for 5 states"),
        ({"steps_per_epoch": 0}, "steps must be at least 1"),
        ({"num_test_states": 0}, "test must be at least 1 state"),
        ({"teacher": "pongg"}, "agent must be one of"),
    ],
)
def test_bad_numbers_are_refused_before_recording(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(prepare=False, **change)


def test_missing_recording_is_named(build_unprepared):
    with pytest.raises(FileNotFoundError, match=r"no recording at .*pong"):
        build_unprepared().setup()
    with pytest.raises(RuntimeError, match="call it first"):
        build_unprepared().train_dataloader()


@pytest.fixture
def build_unprepared(tmp_path, settings, teacher):
    def build_(root=tmp_path, teacher=teacher, **changes):
        return RecordingDataModule(root, settings, teacher, batch_size=8, **{**SIZES, **changes})

    return build_


def test_another_or_a_shorter_recording_is_never_used(build, root, build_unprepared, small_teacher):
    build()
    with pytest.raises(ValueError, match=r"must be this teacher's recording.*prepare_data\(\)"):
        build_unprepared(root, small_teacher(seed=9)).setup()
    with pytest.raises(ValueError, match="long enough for SplitSizes"):
        build_unprepared(root, num_states=5000).setup()


def test_damaged_recording_is_refused_until_it_is_remade(build, build_unprepared, tmp_path):
    path = build(root=tmp_path).folder / "log_probs.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for attempt in (lambda data: data.prepare_data(), lambda data: data.setup()):
        with pytest.raises(ValueError, match=r"damaged recording: .*log_probs\.npy.*remake=True"):
            attempt(build_unprepared(tmp_path))
    build(root=tmp_path, remake=True)


def test_teacher_with_other_actions_is_refused(build, tmp_path, small_teacher):
    with pytest.raises(ValueError, match="teacher must have 6 outputs"):
        build(root=tmp_path, teacher=small_teacher(num_actions=3))


class Student(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["index"].tolist())
        return self.weight * batch["x"].float().mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(trainer.default_root_dir + "/stopped.ckpt")
            trainer.should_stop = True


def fit(data, folder, callbacks=(), max_epochs=3, ckpt_path=None):
    student = Student()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(student, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return student.seen


@pytest.mark.parametrize("step", [4, 6, 9])
def test_a_resumed_run_sees_the_batches_that_were_to_come(build, tmp_path, step):
    straight = fit(build(prepare=False), tmp_path)
    assert len(straight) == 18
    before = fit(build(prepare=False), tmp_path, [StopAt(step)])[:step]
    after = fit(build(prepare=False), tmp_path, ckpt_path=tmp_path / "stopped.ckpt")
    assert before + after == straight


@pytest.mark.slow
@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_two_processes_take_halves_of_one_stream(build, tmp_path, use_distributed_sampler):
    alone = fit(build(prepare=False, batch_size=16), tmp_path, max_epochs=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=1,
        use_distributed_sampler=use_distributed_sampler,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Writing(tmp_path), build(prepare=False))
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    together = [one + other for one, other in zip(*halves, strict=True)]
    assert together == alone


class Writing(Student):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        torch.save(self.seen, self.folder / f"{self.global_rank}.pt")


def test_settings_name_the_folder(build, root):
    assert build(prepare=False).folder == root / "pong"
    other = AtariSettings("breakout")
    assert build(prepare=False, settings=other).folder == root / "breakout"


def test_the_mean_state_is_that_of_the_chosen_states_alone(build):
    data = build(fraction=0.5)
    dataset = data.train_dataloader().dataset
    stacks = dataset[np.arange(len(dataset))]["x"].double() / 255
    assert_close(data.mean_state(), stacks.mean(0).float())
