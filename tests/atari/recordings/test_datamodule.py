from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    Behavior,
    RecordingDataModule,
    RecordingOptions,
    SplitSizes,
    StoredDataModule,
    record,
    scale_pixels,
)
from lightning_sobolev.atari.recordings.dataset import STRIDE
from tests.atari.recordings._training import StopIn, Stopped, fit

SIZES = SplitSizes(train=120, validation=20, test=40)


@pytest.fixture(scope="module")
def root(tmp_path_factory, recording, settings, teacher):
    """Recordings of the teacher's play, and of its play when it strays."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "plain").symlink_to(recording.folder)
    behavior = Behavior(epsilon=0.5)
    record(folder / "strays", settings, teacher, num_states=120, behavior=behavior, seed=1)
    return folder


@pytest.fixture
def build(root, settings, teacher):
    def build_(prepare=True, **changes):
        options = {"batch_size": 8, "steps_per_epoch": 6, "sizes": SIZES, **changes}
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


@pytest.fixture
def stored(root, teacher):
    def build_(*folders, **changes):
        options = {"sizes": SplitSizes(train=None, validation=10, test=30), "batch_size": 8}
        options |= changes
        data = StoredDataModule(
            root, folders or ["plain", "strays"], options.pop("teacher", teacher), **options
        )
        data.setup()
        return data

    return build_


def loaders(data):
    return data.train_dataloader(), data.val_dataloader(), data.test_dataloader()


def indices(loader):
    return torch.cat([batch["index"] for batch in loader]).numpy()


@pytest.mark.parametrize("which", ["build", "stored"])
def test_batches_hold_stacks_and_the_teachers_answers(request, which, teacher):
    data = request.getfixturevalue(which)(steps_per_epoch=30)
    assert len(data.train_dataloader()) == 30
    recordings = data.train_dataloader().dataset.recordings
    for loader in loaders(data):
        batch = next(iter(loader))
        assert batch["x"].dtype == torch.uint8
        with torch.no_grad():
            expected = teacher(scale_pixels(batch["x"])).log_softmax(-1)
        assert_close(batch["log_probs"], expected, rtol=1e-5, atol=1e-5)
        parts, rows = np.divmod(batch["index"].numpy(), STRIDE)
        for part, recording in enumerate(recordings):
            own = parts == part
            np.testing.assert_array_equal(batch["x"][own], recording.stacks(rows[own]))


@pytest.mark.parametrize("which", ["build", "stored"])
def test_training_validation_and_test_are_of_different_episodes(request, which):
    data = request.getfixturevalue(which)(steps_per_epoch=60)
    kinds = [indices(loader) for loader in loaders(data)]
    for part, recording in enumerate(data.train_dataloader().dataset.recordings):
        episodes = [set(recording.episodes[i[i // STRIDE == part] % STRIDE]) for i in kinds]
        assert all(episodes)
        assert sum(map(len, episodes)) == len(set.union(*episodes))
    assert len(kinds[1]) == data.sizes.validation == len(set(kinds[1]))
    assert len(kinds[2]) == data.sizes.test == len(set(kinds[2]))
    assert len(set(kinds[0])) == data.num_train_states


def test_a_fraction_is_part_of_a_larger_one(build):
    parts = [
        set(indices(build(fraction=f, steps_per_epoch=60).train_dataloader()))
        for f in (0.1, 0.5, 1)
    ]
    assert [len(part) for part in parts] == [12, 60, 120]
    assert parts[0] < parts[1] < parts[2]


def test_the_mean_state_is_that_of_the_chosen_states_alone(stored):
    data = stored(fraction=0.5)
    dataset = data.train_dataloader().dataset
    stacks = dataset[torch.arange(len(dataset))]["x"].double() / 255
    assert_close(data.mean_state, stacks.mean(0).float())


def test_the_same_request_gives_the_same_states_from_a_longer_recording(build, tmp_path):
    kinds = [indices(loader) for loader in loaders(build(root=tmp_path))]
    longer = build(root=tmp_path, sizes=SplitSizes(train=240, validation=20, test=40))
    np.testing.assert_array_equal(indices(longer.test_dataloader()), kinds[2])
    for loader, index in zip(loaders(build(root=tmp_path)), kinds, strict=True):
        np.testing.assert_array_equal(indices(loader), index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": 0.001}, "fraction must leave a state of 120, got 0.001"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sizes": SplitSizes(train=None)}, "train must be a number where it is recorded for"),
        ({"teacher": "pongg"}, "agent must be one of"),
        ({"recording": RecordingOptions(behavior=Behavior(beta=0.5))}, "player must be given"),
    ],
)
def test_wrong_numbers_are_refused_before_recording(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(prepare=False, **change)


def test_the_check_comes_before_anything_is_recorded(build, tmp_path):
    def check(teacher):
        assert teacher is data.teacher
        raise ValueError("not the teacher of the card")

    data = build(root=tmp_path, prepare=False, check=check)
    with pytest.raises(ValueError, match="not the teacher of the card"):
        data.prepare_data()
    assert not data.folder.exists()


def test_another_or_a_shorter_recording_is_never_used(build, tmp_path, small_teacher):
    with pytest.raises(FileNotFoundError, match=r"no recording at .*pong"):
        build(root=tmp_path, prepare=False).setup()
    with pytest.raises(RuntimeError, match="call it first"):
        build(root=tmp_path, prepare=False).train_dataloader()
    build(root=tmp_path)
    with pytest.raises(ValueError, match=r"must be this teacher's recording.*prepare_data\(\)"):
        build(root=tmp_path, prepare=False, teacher=small_teacher(seed=9)).setup()
    with pytest.raises(ValueError, match="long enough for SplitSizes"):
        build(root=tmp_path, prepare=False, sizes=SplitSizes(train=5000)).setup()


@pytest.mark.parametrize("step", [4, 6])
def test_a_resumed_run_sees_the_batches_that_were_to_come(build, tmp_path, step):
    straight = fit(build(prepare=False), tmp_path)
    with pytest.raises(Stopped):
        fit(build(prepare=False), tmp_path, StopIn(step))
    resumed = fit(build(prepare=False), tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert straight.seen[step:] == resumed.seen


def test_processes_share_every_batch(build):
    alone = [rows for loader in loaders(build()) for rows in loader.sampler]
    shares = []
    for rank in range(2):
        data = build()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append([rows for loader in loaders(data) for rows in loader.sampler])
    for batch, *parts in zip(alone, *shares, strict=True):
        assert len(parts[0]) < len(batch)
        assert sorted(torch.cat(parts)) == sorted(batch)


def test_stored_states_keep_their_indices_whatever_else_is_served(stored):
    both, alone = (
        indices(data.test_dataloader())
        for data in (
            stored(),
            stored("strays", sizes=SplitSizes(train=None, validation=4, test=12)),
        )
    )
    # 180 and 120 states
    assert np.bincount(both // STRIDE).tolist() == [18, 12]
    np.testing.assert_array_equal(both[both >= STRIDE] - STRIDE, alone)


def test_answers_of_another_teacher_are_refused(stored, small_teacher):
    with pytest.raises(ValueError, match=r"teacher must be the one that answered in .*plain"):
        stored(teacher=small_teacher(seed=7))
    assert stored(teacher=None).teacher is None


def sizes(train=None, validation=10, test=30):
    return SplitSizes(train=train, validation=validation, test=test)


@pytest.mark.parametrize(
    ("folders", "change", "error", "message"),
    [
        (["nowhere"], {}, FileNotFoundError, "no recording at .*nowhere"),
        ("plain", {}, ValueError, "folders must be a list of at least one recording"),
        ([], {}, ValueError, "folders must be a list of at least one recording"),
        (["plain", "plain"], {}, ValueError, "each once, got"),
        (
            ["plain"],
            {"sizes": sizes(train=5000)},
            ValueError,
            r"train must be at most \d+ states, those",
        ),
        (["plain"], {"sizes": sizes(test=175)}, ValueError, "plain must have whole episodes"),
    ],
)
def test_what_cannot_be_served_is_named(root, teacher, folders, change, error, message):
    with pytest.raises(error, match=message):
        StoredDataModule(root, folders, teacher, **{"sizes": sizes(), **change}).setup()


def test_recordings_that_do_not_go_together_are_refused(tmp_path, recording, small_teacher):
    settings = AtariSettings("breakout", num_envs=2, max_num_frames_per_episode=120)
    other = record(tmp_path / "breakout", settings, small_teacher(4), num_states=120)
    data = StoredDataModule(tmp_path, [recording.folder, other.folder], None, sizes=sizes())
    with pytest.raises(ValueError, match=r"must have states of one shape and as many answers, got"):
        data.setup()
