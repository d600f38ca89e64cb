"""Minari's own reader and writer, on data sets in a folder of the test; nothing is downloaded."""

import importlib
import json
import warnings

import gymnasium
import minari
import numpy as np
import pytest
import torch
from ale_py import ALEInterface, roms
from minari.data_collector.episode_buffer import EpisodeBuffer
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    Recording,
    StoredDataModule,
    export_minari,
    import_minari,
    log_probabilities,
    record,
)
from lightning_sobolev.atari.conversion import to_pictures
from lightning_sobolev.atari.storage import INDEX_FILE, beside

SPACES = {
    "observation_space": gymnasium.spaces.Box(0, 255, (84, 84), np.uint8),
    "action_space": gymnasium.spaces.Discrete(6),
}


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def index_of(folder):
    return json.loads((folder / INDEX_FILE).read_text())


@pytest.mark.parametrize("stacked", [False, True])
def test_a_recording_comes_back_bit_for_bit(tmp_path, recording, stacked):
    place = export_minari(recording, "pong/teacher-v0", stacked=stacked)
    back = import_minari("pong/teacher-v0", tmp_path / "back")
    assert index_of(back.folder) == index_of(recording.folder)
    assert place == tmp_path / "datasets" / "pong" / "teacher-v0"
    assert "pong/teacher-v0" in minari.list_local_datasets()


def test_episodes_are_what_the_game_showed(recording):
    export_minari(recording, "pong/teacher-v0", stacked=True)
    dataset = minari.load_dataset("pong/teacher-v0")
    assert dataset.total_steps == recording.num_states
    assert dataset.total_episodes == recording.episodes.max() + 1
    assert dataset.observation_space.shape == (4, 84, 84)
    for number, episode in enumerate(dataset):
        rows = np.flatnonzero(recording.episodes == number)
        states = recording.states[rows]
        assert len(episode.observations) == len(rows) + 1
        np.testing.assert_array_equal(episode.observations[:-1], recording.stacks(rows))
        np.testing.assert_array_equal(episode.actions, states["action"])
        np.testing.assert_array_equal(episode.rewards, states["reward"])
        np.testing.assert_array_equal(episode.terminations, states["end"] == 1)
        # also where the recording stopped in the middle of a game
        assert episode.truncations[-1] != episode.terminations[-1]
        assert not episode.truncations[:-1].any()
        answers = episode.infos["teacher_log_probs"][:-1]
        np.testing.assert_array_equal(answers, recording.log_probs[rows])
        assert episode.observations[-1].max() == 0
        assert np.isnan(episode.infos["teacher_log_probs"][-1]).all()


def test_some_episodes_keep_the_stored_answers(tmp_path, recording):
    export_minari(recording, "pong/teacher-v0")
    dataset = minari.load_dataset("pong/teacher-v0")
    some = dataset.filter_episodes(lambda episode: episode.id in (2, 5, 19))
    made = import_minari(some, tmp_path / "some")
    assert made.settings.num_envs == 1
    for number, source in enumerate((2, 5, 19)):
        rows, old = (
            np.flatnonzero(m.episodes == n) for m, n in ((made, number), (recording, source))
        )
        np.testing.assert_array_equal(made.stacks(rows), recording.stacks(old))
        np.testing.assert_array_equal(made.log_probs[rows], recording.log_probs[old])
        np.testing.assert_array_equal(made.states["age"][rows], recording.states["age"][old])
        np.testing.assert_array_equal(made.states["action"][rows], recording.states["action"][old])
    assert made.identity["teacher_sha256"] == recording.identity["teacher_sha256"]


def test_another_teacher_answers_anew(tmp_path, recording, small_teacher):
    export_minari(recording, "pong/teacher-v0")
    other = small_teacher(seed=5)
    made = import_minari("pong/teacher-v0", tmp_path / "other", teacher=other)
    assert_answers(made, other)


def assert_answers(made, teacher):
    expected = log_probabilities(teacher, made.stacks(np.arange(made.num_states)))
    assert_close(torch.from_numpy(made.log_probs), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def foreign(dataset_id, observations, spaces=SPACES):
    """A data set that knows nothing of this package."""
    buffers = [
        EpisodeBuffer(
            observations=seen,
            actions=np.arange(len(seen) - 1) % 6,
            rewards=np.ones(len(seen) - 1),
            terminations=np.arange(len(seen) - 1) == len(seen) - 2,
            truncations=np.zeros(len(seen) - 1, bool),
        )
        for seen in observations
    ]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # no author, no evaluation
        return minari.create_dataset_from_buffers(
            dataset_id, buffers, jpeg_encoding=False, **spaces
        )


@pytest.fixture(scope="module")
def pictures():
    """Two episodes of pictures, of 12 and 7 steps, with the observation behind the last."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (steps + 1, 84, 84), dtype=np.uint8) for steps in (12, 7)]


def stacks_of(pictures):
    """Stacks as most wrappers make them: the first picture fills the first one."""
    filled = [np.concatenate([seen[:1]] * 3 + [seen]) for seen in pictures]
    return [np.stack([seen[t : t + 4] for t in range(len(seen) - 3)]) for seen in filled]


@pytest.mark.parametrize("form", ["pictures", "axis first", "axis last", "stacks", "stacks last"])
def test_a_foreign_data_set_is_answered_by_the_teacher(tmp_path, pictures, teacher, form):
    observations = {
        "pictures": pictures,
        "axis first": [seen[:, None] for seen in pictures],
        "axis last": [seen[..., None] for seen in pictures],
        "stacks": stacks_of(pictures),
        "stacks last": [np.moveaxis(seen, 1, -1) for seen in stacks_of(pictures)],
    }[form]
    box = gymnasium.spaces.Box(0, 255, observations[0].shape[1:], np.uint8)
    foreign("people/pong-v0", observations, {**SPACES, "observation_space": box})
    settings = AtariSettings("pong", num_envs=3)
    made = import_minari("people/pong-v0", tmp_path / "made", teacher=teacher, settings=settings)
    assert made.settings == AtariSettings("pong", num_envs=1)
    assert made.num_states == 19
    seen = np.concatenate([one[:-1] for one in pictures])
    np.testing.assert_array_equal(made.frames[1:], seen)
    np.testing.assert_array_equal(made.episodes, [0] * 12 + [1] * 7)
    np.testing.assert_array_equal(made.states["end"], [0] * 11 + [1] + [0] * 6 + [1])
    first = made.stacks(np.array([12]))[0]
    assert first[:3].max() == 0
    np.testing.assert_array_equal(first[3], pictures[1][0])
    assert_answers(made, teacher)


def test_an_imported_recording_is_trained_on_beside_another(tmp_path, recording, pictures, teacher):
    foreign("people/pong-v0", [*pictures] * 3)
    import_minari(
        "people/pong-v0", tmp_path / "made", teacher=teacher, settings=AtariSettings("pong")
    )
    data = StoredDataModule(
        tmp_path,
        ["made", recording.folder],
        teacher,
        num_test_states=40,
        num_validation_states=20,
        batch_size=16,
    )
    data.setup()
    assert len(next(iter(data.train_dataloader()))["x"]) == 16
    assert data.num_train_states > 200


def test_the_same_import_is_opened_and_another_refused(tmp_path, pictures, teacher, recording):
    foreign("people/pong-v0", pictures)
    options = {"teacher": teacher, "settings": AtariSettings("pong")}
    made = import_minari("people/pong-v0", tmp_path / "made", **options)
    before = (made.folder / "frames.npy").stat().st_mtime_ns
    import_minari("people/pong-v0", tmp_path / "made", **options)
    assert (made.folder / "frames.npy").stat().st_mtime_ns == before
    export_minari(recording, "pong/teacher-v0")
    with pytest.raises(ValueError, match=r"folder must be new, or remake=True.*imported"):
        import_minari("pong/teacher-v0", tmp_path / "made")
    import_minari("pong/teacher-v0", tmp_path / "made", remake=True)
    assert Recording(tmp_path / "made").num_states == recording.num_states


def test_an_imported_recording_is_never_recorded_over(tmp_path, pictures, teacher, settings):
    foreign("people/pong-v0", pictures)
    made = import_minari(
        "people/pong-v0", tmp_path / "made", teacher=teacher, settings=AtariSettings("pong")
    )
    with pytest.raises(ValueError, match="must not be an imported recording"):
        record(made.folder, settings, teacher, num_states=8)
    assert made.folder.exists()
    assert record(made.folder, settings, teacher, num_states=8, remake=True).num_states == 8


@pytest.mark.parametrize(
    ("spec", "game"),
    [("ALE/SpaceInvaders-v5", "space_invaders"), ("PongNoFrameskip-v4", "pong")],
)
def test_the_game_is_found_in_the_environments_id(tmp_path, pictures, teacher, spec, game):
    dataset = foreign("people/game-v0", pictures)
    dataset._env_spec = gymnasium.envs.registration.EnvSpec(spec, entry_point="unused")
    made = import_minari(dataset, tmp_path / "made", teacher=teacher)
    assert made.settings.game == game


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"teacher": None}, "teacher must be given where a data set holds no answers"),
        ({}, {"settings": None}, r"settings must be given: people/pong-v0 does not say which game"),
        ({"cast": np.float32}, {}, r"observations must be uint8 .*, got float32 \[84, 84\]"),
        ({"stack": 3}, {}, "must be stacks of 4 pictures, got 3: set stack_num"),
        ({"stack": 4}, {}, "must be stacks of the last pictures, each moved on by one"),
        ({"actions": 9}, {}, "an output for every action of .*, got 6 outputs and action 8"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, pictures, teacher, change, options, message):
    observations = [seen.astype(change.get("cast", np.uint8)) for seen in pictures]
    if "stack" in change:
        observations = [np.stack([seen] * change["stack"], axis=1) for seen in observations]
    space = gymnasium.spaces.Box(0, 255, observations[0].shape[1:], observations[0].dtype)
    dataset = foreign("people/pong-v0", observations, {**SPACES, "observation_space": space})
    if "actions" in change:
        dataset = Changed(dataset, actions=np.array([8]))
    asked = {"teacher": teacher, "settings": AtariSettings("pong"), **options}
    with pytest.raises(ValueError, match=message):
        import_minari(dataset, tmp_path / "made", **asked)
    assert not (tmp_path / "made").exists()


class Changed:
    """A data set whose episodes hold something else."""

    def __init__(self, dataset, **changes):
        self._dataset = dataset
        self._changes = changes

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def iterate_episodes(self):
        for episode in self._dataset.iterate_episodes():
            yield type(episode)(**{**vars(episode), **self._changes})


def test_a_damaged_export_is_named(tmp_path, recording):
    export_minari(recording, "pong/teacher-v0")
    dataset = minari.load_dataset("pong/teacher-v0")
    black = np.zeros((1000, 1, 84, 84), np.uint8)
    with pytest.raises(ValueError, match="does not have the checksums"):
        import_minari(Changed(dataset, observations=black), tmp_path / "made")
    far = {"state": np.full(1000, 7000), "end": np.zeros(1000), "teacher_log_probs": None}
    with pytest.raises(ValueError, match=r"damaged data set: states of episode 0 .*got 7000"):
        import_minari(Changed(dataset, infos=far), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_names_are_checked_and_taken_ones_kept(recording):
    for name in ("pong", "pong teacher-v0"):
        with pytest.raises(ValueError, match="dataset_id must look like 'pong/teacher-v0'"):
            export_minari(recording, name)
    place = export_minari(recording, "pong/teacher-v0")
    with pytest.raises(ValueError, match="dataset_id must be new or replace=True"):
        export_minari(recording, "pong/teacher-v0")
    assert export_minari(recording, "pong/teacher-v0", replace=True) == place


def test_an_export_that_breaks_off_leaves_nothing_to_be_found(recording, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recording, "teacher_log_probs", stop)
    with pytest.raises(KeyboardInterrupt):
        export_minari(recording, "pong/teacher-v0")
    assert minari.list_local_datasets() == {}


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="minari download nobody/pong-v0"):
        import_minari("nobody/pong-v0", tmp_path / "made")


@pytest.mark.parametrize("missing", ["minari", "h5py", "PIL"])
def test_the_missing_extra_is_named(tmp_path, recording, monkeypatch, missing):
    whole = importlib.import_module

    def without(name, *rest):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return whole(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'minari'"):
        export_minari(recording, "pong/teacher-v0")
    with pytest.raises(ModuleNotFoundError, match="install the extra 'minari'"):
        import_minari("pong/teacher-v0", tmp_path / "made")


def test_colors_turn_grey_as_in_the_emulator():
    ale = ALEInterface()
    ale.setInt("random_seed", 0)
    ale.loadROM(roms.get_rom_path("breakout"))
    for _ in range(80):
        ale.act(1)
    settings = AtariSettings("breakout", img_height=210, img_width=160)
    grey = to_pictures(ale.getScreenRGB()[None], settings)[0]
    difference = np.abs(grey.astype(int) - ale.getScreenGrayscale())
    assert grey.max() > 100
    assert difference.max() <= 1


def test_another_size_is_the_mean_over_areas():
    picture = np.random.default_rng(0).integers(0, 256, (1, 210, 160), dtype=np.uint8)
    found = to_pictures(picture, AtariSettings("pong"))[0]
    # every old pixel divided so finely that new pixels are whole blocks
    fine = np.repeat(np.repeat(picture[0].astype(float), 2, 0), 21, 1)
    expected = fine.reshape(84, 5, 84, 40).mean((1, 3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.5 + 1e-9)


def test_half_written_folders_are_replaced(tmp_path, pictures, teacher):
    beside(tmp_path / "made", "writing").mkdir()
    foreign("people/pong-v0", pictures)
    made = import_minari(
        "people/pong-v0", tmp_path / "made", teacher=teacher, settings=AtariSettings("pong")
    )
    assert made.num_states == 19
    assert not beside(tmp_path / "made", "writing").exists()
