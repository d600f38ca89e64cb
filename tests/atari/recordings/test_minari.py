"""Minari's own reader and writer, on data sets in a folder of the test; nothing is downloaded."""

import sys
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
    export_minari,
    import_minari,
    log_probabilities,
    record,
)
from lightning_sobolev.atari.minari import _to_frames

SPACES = {
    "observation_space": gymnasium.spaces.Box(0, 255, (84, 84), np.uint8),
    "action_space": gymnasium.spaces.Discrete(6),
}
PONG = AtariSettings("pong")


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.mark.parametrize("stacked", [False, True])
def test_episodes_are_what_the_game_showed_and_come_back(tmp_path, recording, teacher, stacked):
    place = export_minari(recording, "pong/teacher-v0", stacked=stacked)
    assert place == tmp_path / "datasets" / "pong" / "teacher-v0"
    dataset = minari.load_dataset("pong/teacher-v0")
    assert dataset.total_steps == recording.num_states
    assert dataset.total_episodes == recording.episodes.max() + 1
    for number, episode in enumerate(dataset):
        rows = np.flatnonzero(recording.episodes == number)
        states = recording.states[rows]
        stacks = recording.stacks(rows)
        np.testing.assert_array_equal(
            episode.observations[:-1], stacks if stacked else stacks[:, -1:]
        )
        np.testing.assert_array_equal(episode.actions, states["action"])
        np.testing.assert_array_equal(episode.rewards, states["reward"])
        np.testing.assert_array_equal(episode.terminations, states["end"] == 1)
        np.testing.assert_array_equal(episode.truncations, states["end"] == 2)
        answers = episode.infos["teacher_log_probs"]
        np.testing.assert_array_equal(answers[:-1], recording.log_probs[rows])
        assert episode.observations[-1].max() == 0
        assert np.isnan(answers[-1]).all()
    back = import_minari(dataset, tmp_path / "back", teacher=teacher, settings=PONG)
    rows = np.arange(recording.num_states)
    np.testing.assert_array_equal(back.stacks(rows), recording.stacks(rows))
    for name in ("episode", "age", "action", "reward", "end"):
        np.testing.assert_array_equal(back.states[name], recording.states[name])
    assert_answers(back, teacher)


def test_some_episodes_are_imported_alone(tmp_path, recording, small_teacher):
    export_minari(recording, "pong/teacher-v0")
    dataset = minari.load_dataset("pong/teacher-v0")
    some = dataset.filter_episodes(lambda episode: episode.id in (2, 5))
    other = small_teacher(seed=5)
    made = import_minari(some, tmp_path / "some", teacher=other, settings=PONG)
    old = np.flatnonzero(np.isin(recording.episodes, (2, 5)))
    np.testing.assert_array_equal(made.stacks(np.arange(len(old))), recording.stacks(old))
    assert set(made.episodes) == {0, 1}
    assert_answers(made, other)


def assert_answers(made, teacher):
    expected = log_probabilities(teacher, made.stacks(np.arange(made.num_states)))
    assert_close(torch.from_numpy(made.log_probs), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def foreign(dataset_id, observations, spaces=SPACES):
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
def frames():
    """Two episodes of frames, of 12 and 7 steps, with the observation behind the last."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (steps + 1, 84, 84), dtype=np.uint8) for steps in (12, 7)]


def stacks_of(frames):
    """Stacks as most wrappers make them: the first frame fills the first one."""
    filled = [np.concatenate([seen[:1]] * 3 + [seen]) for seen in frames]
    return [np.stack([seen[t : t + 4] for t in range(len(seen) - 3)]) for seen in filled]


FORMS = {
    "frames": lambda frames: frames,
    "axis first": lambda frames: [seen[:, None] for seen in frames],
    "axis last": lambda frames: [seen[..., None] for seen in frames],
    "stacks": stacks_of,
    "stacks last": lambda frames: [np.moveaxis(seen, 1, -1) for seen in stacks_of(frames)],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_data_set_is_answered_by_the_teacher(tmp_path, frames, teacher, form):
    observations = FORMS[form](frames)
    box = gymnasium.spaces.Box(0, 255, observations[0].shape[1:], np.uint8)
    foreign("people/pong-v0", observations, {**SPACES, "observation_space": box})
    settings = AtariSettings("pong", num_envs=3)
    made = import_minari("people/pong-v0", tmp_path / "made", teacher=teacher, settings=settings)
    assert made.settings == AtariSettings("pong", num_envs=1)
    seen = np.concatenate([one[:-1] for one in frames])
    np.testing.assert_array_equal(made.frames(np.arange(19)), seen)
    np.testing.assert_array_equal(made.episodes, [0] * 12 + [1] * 7)
    np.testing.assert_array_equal(made.states["end"], [0] * 11 + [1] + [0] * 6 + [1])
    first = made.stacks(np.array([12]))[0]
    assert first[:3].max() == 0
    np.testing.assert_array_equal(first[3], frames[1][0])
    assert_answers(made, teacher)


def test_the_same_import_is_opened_and_nothing_else_replaced(
    tmp_path, frames, teacher, small_teacher, settings
):
    foreign("people/pong-v0", frames)
    folder = tmp_path / "made"
    import_minari("people/pong-v0", folder, teacher=teacher, settings=PONG)
    before = (folder / "shard-00000.frames").stat().st_mtime_ns
    import_minari("people/pong-v0", folder, teacher=teacher, settings=PONG)
    assert (folder / "shard-00000.frames").stat().st_mtime_ns == before
    other = {"teacher": small_teacher(seed=2), "settings": PONG}
    with pytest.raises(ValueError, match="folder must be new, or remake=True"):
        import_minari("people/pong-v0", folder, **other)
    with pytest.raises(ValueError, match="must not be an imported recording"):
        record(folder, settings, teacher, num_states=8)
    import_minari("people/pong-v0", folder, remake=True, **other)
    assert_answers(Recording(folder), other["teacher"])
    record(folder, settings, teacher, num_states=8, remake=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"must hold .*thesis\.tex"):
        import_minari("people/pong-v0", folder, remake=True, **other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cast": np.float32}, r"observations must be uint8 .*, got float32 \[84, 84\]"),
        ({"stack": 3}, "must be stacks of 4 frames, got 3: set stack_num"),
        ({"stack": 4}, "must be stacks of the last frames, each moved on by one"),
        ({"outputs": 4}, "an output for every action of .*, got 4 outputs and action 5"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, frames, small_teacher, change, message):
    observations = [seen.astype(change.get("cast", np.uint8)) for seen in frames]
    if "stack" in change:
        observations = [np.stack([seen] * change["stack"], axis=1) for seen in observations]
    space = gymnasium.spaces.Box(0, 255, observations[0].shape[1:], observations[0].dtype)
    foreign("people/pong-v0", observations, {**SPACES, "observation_space": space})
    asked = {"teacher": small_teacher(change.get("outputs", 6)), "settings": PONG}
    with pytest.raises(ValueError, match=message):
        import_minari("people/pong-v0", tmp_path / "made", **asked)
    assert not list(tmp_path.glob("made/[!.]*"))


def test_names_are_checked_and_taken_ones_kept(recording):
    for name in ("pong", "pong teacher-v0"):
        with pytest.raises(ValueError, match="dataset_id must look like 'pong/teacher-v0'"):
            export_minari(recording, name)
    export_minari(recording, "pong/teacher-v0")
    with pytest.raises(ValueError, match="dataset_id must be new, got"):
        export_minari(recording, "pong/teacher-v0")


def test_an_export_that_breaks_off_leaves_nothing_to_be_found(recording, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recording, "frames", stop)
    with pytest.raises(KeyboardInterrupt):
        export_minari(recording, "pong/teacher-v0")
    assert minari.list_local_datasets() == {}


def test_a_data_set_that_is_not_here_is_named(tmp_path, teacher):
    with pytest.raises(FileNotFoundError, match="minari download nobody/pong-v0"):
        import_minari("nobody/pong-v0", tmp_path / "made", teacher=teacher, settings=PONG)


@pytest.mark.parametrize("missing", ["minari", "h5py", "PIL"])
def test_what_is_missing_is_named(tmp_path, recording, teacher, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'minari'"):
        export_minari(recording, "pong/teacher-v0")
    with pytest.raises(ModuleNotFoundError, match="install the extra 'minari'"):
        import_minari("pong/teacher-v0", tmp_path / "made", teacher=teacher, settings=PONG)


def test_colors_turn_grey_as_in_the_emulator():
    ale = ALEInterface()
    ale.setInt("random_seed", 0)
    ale.loadROM(roms.get_rom_path("breakout"))
    for _ in range(80):
        ale.act(1)
    settings = AtariSettings("breakout", img_height=210, img_width=160)
    grey = _to_frames(ale.getScreenRGB()[None], settings)[0]
    difference = np.abs(grey.astype(int) - ale.getScreenGrayscale())
    assert grey.max() > 100
    assert difference.max() <= 1


def test_another_size_is_the_mean_over_areas():
    frame = np.random.default_rng(0).integers(0, 256, (1, 210, 160), dtype=np.uint8)
    found = _to_frames(frame, PONG)[0]
    # every old pixel divided so finely that new pixels are whole blocks
    fine = np.repeat(np.repeat(frame[0].astype(float), 2, 0), 21, 1)
    expected = fine.reshape(84, 5, 84, 40).mean((1, 3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.5 + 1e-9)
