import dataclasses
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    Behavior,
    Recording,
    log_probabilities,
    record,
    recorder,
    replacing,
)
from lightning_sobolev.atari.environments import Environments
from lightning_sobolev.atari.storage import ARRAY_FILES, INDEX_FILE, beside


@pytest.fixture
def messages(monkeypatch):
    heard = []
    for place in (recorder, replacing):
        monkeypatch.setattr(place, "rank_zero_info", heard.append)
    return heard


def checksums(folder):
    return json.loads((folder / INDEX_FILE).read_text())["sha256"]


def stop_after(monkeypatch, steps):
    """Make the games raise what Ctrl-C raises, once."""
    count = {"left": steps}
    step = Environments.step

    def counted(self, actions):
        count["left"] -= 1
        if count["left"] == 0:
            raise KeyboardInterrupt
        return step(self, actions)

    monkeypatch.setattr(Environments, "step", counted)


def replayed(game, actions, seed, **options):
    """The stacks that the bare environment gives for recorded actions."""
    num_envs = actions.shape[1]
    env = AtariVectorEnv(game, num_envs, autoreset_mode="SameStep", **options)
    seeds = (np.random.SeedSequence(seed).generate_state(num_envs) >> 1).astype(np.int32)
    stacks, rewards, ends = [env.reset(seed=seeds)[0]], [], []
    for action in actions:
        stack, reward, terminated, truncated, _ = env.step(action.astype(np.int64))
        stacks.append(stack)
        rewards.append(reward)
        ends.append(terminated + 2 * truncated)
    return np.stack(stacks[:-1]), np.stack(rewards), np.stack(ends)


@pytest.mark.parametrize(
    ("game", "num_actions", "options", "num_states"),
    [
        ("pong", 6, {"max_num_frames_per_episode": 120}, 320),
        ("breakout", 4, {"episodic_life": True}, 480),  # real ends, and FIRE at the start
        ("pong", 6, {"max_num_frames_per_episode": 60, "stack_num": 3, "img_height": 60}, 160),
    ],
)
def test_stacks_are_the_environments_bit_for_bit(tmp_path, game, num_actions, options, num_states):
    settings = AtariSettings(game, num_envs=2, **options)
    teacher = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.LazyLinear(num_actions)
    )
    teacher(torch.rand(1, settings.stack_num, settings.img_height, 84))
    made = record(tmp_path / game, settings, teacher, num_states=num_states, seed=3)
    states = made.states.reshape(-1, 2)
    stacks, rewards, ends = replayed(game, states["action"], 3, reward_clipping=False, **options)
    rows = np.arange(made.num_states)
    np.testing.assert_array_equal(made.stacks(rows), stacks.reshape(-1, *stacks.shape[2:]))
    np.testing.assert_array_equal(states["reward"], rewards)
    np.testing.assert_array_equal(states["end"], ends)
    assert (ends > 0).sum() > 4
    assert len(np.unique(made.episodes)) == 2 + (ends[:-1] > 0).sum()


def test_no_stack_crosses_an_episode(recording):
    rows = np.arange(recording.num_states)
    numbers = recording.frame_numbers(rows)
    own = recording.episodes[rows][:, None]
    found = np.where(numbers == 0, own, recording.episodes[np.maximum(numbers - 1, 0)])
    np.testing.assert_array_equal(found, np.broadcast_to(own, found.shape))
    padded = (numbers == 0).sum(axis=1)
    np.testing.assert_array_equal(padded, np.maximum(3 - recording.states["age"], 0))


def test_stored_answers_are_the_teachers(recording, teacher):
    rows = np.arange(0, recording.num_states, 7)
    expected = log_probabilities(teacher, recording.stacks(rows))
    found = recording.teacher_log_probs(rows)
    assert found.dtype == np.float32
    assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_actions_follow_the_teacher(recording, tmp_path, settings, teacher):
    drawn = recording.log_probs[np.arange(recording.num_states), recording.states["action"]]
    entropy = -(np.exp(recording.log_probs) * recording.log_probs).sum(axis=1)
    # E[-log p(a)] is the entropy; the bound is 5 standard errors
    assert abs((-drawn - entropy).mean()) < 5 * (-drawn - entropy).std() / np.sqrt(len(drawn))
    made = record(
        tmp_path / "greedy", settings, teacher, num_states=40, behavior=Behavior(greedy=True)
    )
    np.testing.assert_array_equal(made.states["action"], made.log_probs.argmax(axis=1))


def test_index_says_what_was_recorded(recording):
    index = json.loads((recording.folder / INDEX_FILE).read_text())
    assert index["counts"] == {"num_states": 300, "num_episodes": 20, "num_actions": 6}
    assert index["settings"] == dataclasses.asdict(recording.settings)
    assert set(index["sha256"]) == set(ARRAY_FILES)
    assert recording.frames.shape == (301, 84, 84)
    assert not beside(recording.folder, "partial").exists()


def test_a_recording_that_is_there_is_not_made_again(recording, settings, teacher, messages):
    before = os.stat(recording.folder / "frames.npy").st_mtime_ns
    again = record(recording.folder, settings, teacher, num_states=200)
    assert again.num_states == recording.num_states
    assert os.stat(recording.folder / "frames.npy").st_mtime_ns == before
    assert messages == []


def test_a_recording_older_than_a_setting_is_not_made_again(copied, settings, teacher, messages):
    index = json.loads((copied / INDEX_FILE).read_text())
    del index["settings"]["fire_on_life_loss"]
    (copied / INDEX_FILE).write_text(json.dumps(index))
    record(copied, settings, teacher, num_states=32)
    assert messages == []
    other = dataclasses.replace(settings, fire_on_life_loss=True)
    record(copied, other, teacher, num_states=32)
    assert "fire_on_life_loss: False instead of True" in messages[0]


def test_a_longer_recording_begins_with_the_shorter(tmp_path, recording, settings, teacher):
    folder = tmp_path / "pong"
    record(folder, settings, teacher, num_states=120)
    record(folder, settings, teacher, num_states=300)
    assert checksums(folder) == checksums(recording.folder)


@pytest.mark.parametrize("steps", [1, 75, 149])
def test_interrupted_recording_goes_on_as_if_never_stopped(
    tmp_path, recording, settings, teacher, messages, monkeypatch, steps
):
    folder = tmp_path / "pong"
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            record(folder, settings, teacher, num_states=300, chunk_steps=30)
    assert not folder.exists()
    assert beside(folder, "partial").exists()
    record(folder, settings, teacher, num_states=300, chunk_steps=30)
    assert checksums(folder) == checksums(recording.folder)
    assert any("going on after" in text for text in messages) == (steps > 30)


@pytest.mark.parametrize("harm", ["cut", "flip", "replaced"])
def test_damaged_unfinished_recording_is_mended(
    tmp_path, recording, settings, teacher, messages, monkeypatch, harm
):
    folder = tmp_path / "pong"
    with monkeypatch.context() as patch:
        stop_after(patch, 135)
        with pytest.raises(KeyboardInterrupt):
            record(folder, settings, teacher, num_states=300, chunk_steps=30)
    chunks = sorted(beside(folder, "partial").glob("chunk-*.npz"))
    content = bytearray(chunks[2].read_bytes())
    if harm == "cut":
        chunks[2].write_bytes(content[:1000])
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        chunks[2].write_bytes(content)
    else:
        shutil.copy(chunks[1], chunks[2])  # whole, but not what the game replays
    record(folder, settings, teacher, num_states=300, chunk_steps=30)
    assert checksums(folder) == checksums(recording.folder)
    assert any("recording anew" in text for text in messages) == (harm == "replaced")


@pytest.fixture
def copied(tmp_path, recording):
    folder = tmp_path / "pong"
    shutil.copytree(recording.folder, folder)
    return folder


@pytest.mark.parametrize("name", ARRAY_FILES)
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_damaged_file_is_named_and_remade_on_demand(copied, settings, teacher, name, harm):
    good, path = checksums(copied), copied / name
    if harm == "flip":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    for attempt in (Recording, lambda f: record(f, settings, teacher, num_states=300)):
        with pytest.raises(ValueError, match=f"damaged recording: .*{name}.*remake=True"):
            attempt(copied)
    record(copied, settings, teacher, num_states=300, remake=True)
    assert checksums(copied) == good


def test_damaged_index_is_named(copied, settings, teacher):
    (copied / INDEX_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"damaged recording: .*index\.json is not readable"):
        record(copied, settings, teacher, num_states=300)


def test_missing_recording_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recording at .*nowhere"):
        Recording(tmp_path / "nowhere")


def test_another_format_is_refused(copied):
    index = json.loads((copied / INDEX_FILE).read_text())
    (copied / INDEX_FILE).write_text(json.dumps({**index, "format": 0}))
    with pytest.raises(ValueError, match="must have format 1, got 0"):
        Recording(copied)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {"noop_max": 3}}, "noop_max: 30 instead of 3"),
        ({"teacher": 1}, "teacher_sha256"),
        ({"seed": 1}, "seed: 0 instead of 1"),
        ({"behavior": Behavior(greedy=True)}, "greedy: False instead of True"),
        ({"behavior": Behavior(epsilon=0.1)}, r"(epsilon: 0.0 instead of 0.1)"),
    ],
)
def test_another_recording_is_replaced_with_a_message(
    copied, settings, small_teacher, messages, change, named
):
    asked = {"num_states": 40, **change}
    asked["settings"] = dataclasses.replace(settings, **change.get("settings", {}))
    asked["teacher"] = small_teacher(seed=change.get("teacher", 0))
    before = checksums(copied)
    made = record(copied, **asked)
    assert made.num_states == 40
    assert checksums(copied) != before
    assert len(messages) == 1
    assert "made with other settings" in messages[0]
    assert named in messages[0]


def test_a_folder_of_other_things_is_never_deleted(copied, settings, teacher):
    (copied / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"must hold nothing but a recording.*thesis\.tex"):
        record(copied, settings, teacher, num_states=40, remake=True)
    assert (copied / "thesis.tex").exists()


def test_a_swap_that_was_interrupted_is_undone(copied, settings, teacher):
    good = checksums(copied)
    copied.rename(beside(copied, "old"))
    made = record(copied, settings, teacher, num_states=300)
    assert checksums(made.folder) == good


def test_two_at_once_make_one_recording(tmp_path, settings, teacher, messages):
    folder = tmp_path / "pong"
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(
            lambda _: record(folder, settings, teacher, num_states=80, progress=False), range(2)
        )
        assert [one.num_states for one in made] == [80, 80]
    assert messages == []


def test_wrong_number_of_actions_is_refused(tmp_path, settings, small_teacher):
    with pytest.raises(ValueError, match=r"teacher must have 6 outputs for pong \(NOOP.*got 4"):
        record(tmp_path / "pong", settings, small_teacher(num_actions=4), num_states=40)


def test_no_states_are_refused(tmp_path, settings, teacher):
    with pytest.raises(ValueError, match="num_states must be at least 1, got 0"):
        record(tmp_path / "pong", settings, teacher, num_states=0)


def test_the_teacher_is_left_as_it_was(tmp_path, settings, small_teacher):
    teacher = small_teacher().train()
    record(tmp_path / "pong", settings, teacher, num_states=8)
    assert teacher.training
