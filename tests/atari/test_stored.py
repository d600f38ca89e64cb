import numpy as np
import pytest
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, Behavior, StoredDataModule, record
from lightning_sobolev.atari.states import STRIDE


@pytest.fixture(scope="module")
def root(tmp_path_factory, recording, settings, teacher):
    """Two recordings: what the teacher visits, and what it visits when it strays."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "plain").symlink_to(recording.folder)
    behavior = Behavior(epsilon=0.5)
    record(folder / "strays", settings, teacher, num_states=200, behavior=behavior, seed=1)
    return folder


@pytest.fixture
def build(root, teacher):
    def build_(*folders, **changes):
        options = {"num_test_states": 50, "num_validation_states": 25, "batch_size": 8, **changes}
        data = StoredDataModule(
            root, folders or ["plain", "strays"], options.pop("teacher", teacher), **options
        )
        data.setup()
        return data

    return build_


def indices(loader):
    return np.concatenate([batch["index"].numpy() for batch in loader])


def test_states_of_both_are_served_under_lasting_indices(build):
    data = build(steps_per_epoch=60)
    train, validation, test = (
        indices(loader)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    # 300 and 200 states
    assert np.bincount(test // STRIDE).tolist() == [30, 20]
    assert np.bincount(validation // STRIDE).tolist() == [15, 10]
    assert set(train // STRIDE) == {0, 1}
    for batch in data.test_dataloader():
        parts, rows = np.divmod(batch["index"].numpy(), STRIDE)
        for part, recording in enumerate(data.recordings):
            own = parts == part
            np.testing.assert_array_equal(batch["x"][own], recording.stacks(rows[own]))
            np.testing.assert_array_equal(batch["log_probs"][own], recording.log_probs[rows[own]])


def test_no_episode_is_in_two_parts(build):
    data = build()
    for part, recording in enumerate(data.recordings):
        episodes = []
        for name in ("train", "validation", "test"):
            index = data._dataset(name).index
            episodes.append(set(recording.episodes[index[index // STRIDE == part] % STRIDE]))
        assert sum(map(len, episodes)) == len(set.union(*episodes))


def test_the_index_does_not_depend_on_the_other_recordings_length(build):
    both, alone = build(), build("strays", num_test_states=20, num_validation_states=10)
    second = both._dataset("test").index
    second = second[second >= STRIDE] - STRIDE
    np.testing.assert_array_equal(second, alone._dataset("test").index)


def test_a_fraction_is_part_of_a_larger_one(build):
    parts = [set(build(num_states=200, fraction=f)._dataset("train").index) for f in (0.25, 1.0)]
    assert [len(part) for part in parts] == [50, 200]
    assert parts[0] < parts[1]


def test_the_mean_state_is_that_of_all_recordings(build):
    data = build()
    dataset = data._dataset("train")
    stacks = dataset[np.arange(len(dataset))]["x"].double() / 255
    assert_close(data.mean_state(), stacks.mean(0).float())


def test_answers_of_another_teacher_are_refused(build, small_teacher):
    with pytest.raises(ValueError, match=r"teacher must be the one that answered in .*plain"):
        build(teacher=small_teacher(seed=7))
    assert build(teacher=None).teacher is None


@pytest.mark.parametrize(
    ("folders", "change", "error", "message"),
    [
        (["nowhere"], {}, FileNotFoundError, "no recording at .*nowhere"),
        ("plain", {}, ValueError, "folders must be a list of at least one recording"),
        ([], {}, ValueError, "folders must be a list of at least one recording"),
        (["plain", "plain"], {}, ValueError, "each once, got"),
        (["plain"], {"num_states": 5000}, ValueError, r"num_states must be in 1\.\.\d+, what is"),
        (["plain"], {"num_test_states": 0}, ValueError, "test must be at least 1 state, got 0"),
        (["plain"], {"num_test_states": 295}, ValueError, "plain must have whole episodes"),
        (["plain"], {"fraction": 0.0}, ValueError, r"fraction must be in \(0, 1\], got 0.0"),
    ],
)
def test_what_cannot_be_served_is_named(root, teacher, folders, change, error, message):
    options = {"num_test_states": 50, "num_validation_states": 25, **change}
    with pytest.raises(error, match=message):
        StoredDataModule(root, folders, teacher, **options).setup()


def test_recordings_that_do_not_go_together_are_refused(tmp_path, recording, small_teacher):
    settings = AtariSettings("breakout", num_envs=2, max_num_frames_per_episode=60)
    other = record(tmp_path / "breakout", settings, small_teacher(4), num_states=100)
    data = StoredDataModule(
        tmp_path,
        [recording.folder, other.folder],
        None,
        num_test_states=20,
        num_validation_states=10,
    )
    with pytest.raises(ValueError, match=r"must have stacks of one shape and as many actions, got"):
        data.setup()
