import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import threading
from contextlib import contextmanager
from itertools import chain

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv

from lightning_sobolev import _files
from lightning_sobolev.atari import AtariSettings, Behavior, Recording, log_probabilities, record
from lightning_sobolev.atari.environments import Environments
from lightning_sobolev.atari.recordings import format as stored
from lightning_sobolev.atari.recordings import record as recording_module
from lightning_sobolev.atari.recordings.format import FORMAT_VERSION, INDEX_FILE, LOCK_FILE


@pytest.fixture
def messages(monkeypatch):
    heard = []
    monkeypatch.setattr(recording_module, "rank_zero_info", heard.append)
    return heard


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def seeds_of_shard(seed, shard, num_envs):
    games = int(np.random.SeedSequence((seed, shard)).generate_state(1)[0])
    return (np.random.SeedSequence(games).generate_state(num_envs) >> 1).astype(np.int32)


@pytest.mark.parametrize(
    ("game", "num_actions", "options", "num_states"),
    [
        ("breakout", 4, {"episodic_life": True}, 150),  # real ends, and FIRE at the start
        ("pong", 6, {"max_num_frames_per_episode": 60, "stack_num": 3, "img_height": 60}, 40),
    ],
)
def test_stacks_are_the_environments_bit_for_bit(tmp_path, game, num_actions, options, num_states):
    """The bare environment, given the recorded actions, shows what was recorded."""
    settings = AtariSettings(game, num_envs=2, **options)
    teacher = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.LazyLinear(num_actions)
    )
    teacher(torch.rand(1, settings.stack_num, settings.img_height, 84))
    made = record(tmp_path / game, settings, teacher, num_states=num_states, seed=3)
    assert made.num_states >= num_states
    assert len(made.episode_lengths) > 1
    assert max(made.episode_lengths[0]) > settings.stack_num
    starts = np.cumsum([0, *chain(*made.episode_lengths)])  # episodes lie one after another
    for shard, lengths in enumerate(made.episode_lengths):
        env = AtariVectorEnv(game, 2, autoreset_mode="SameStep", reward_clipping=False, **options)
        stacks = env.reset(seed=seeds_of_shard(3, shard, 2))[0]
        for age in range(max(lengths)):
            lanes = [lane for lane in range(2) if age < lengths[lane]]
            rows = [starts[2 * shard + lane] + age for lane in lanes]
            actions, before = np.zeros(2, np.int64), stacks
            actions[lanes] = made.states["action"][rows]
            stacks, rewards, terminated, truncated, _ = env.step(actions)
            np.testing.assert_array_equal(made.stacks(np.array(rows)), before[lanes])
            for lane, state in zip(lanes, made.states[rows], strict=True):
                assert (state["episode"], state["age"]) == (2 * shard + lane, age)
                assert state["reward"] == rewards[lane]
                assert state["end"] == terminated[lane] + 2 * truncated[lane]
                assert (state["end"] > 0) == (age == lengths[lane] - 1)


def test_the_default_is_the_plain_draw_from_the_teacher(recording, settings, teacher):
    """Written out by hand: what is played, answered and drawn depends on these numbers alone."""
    for shard in range(2):
        games = int(np.random.SeedSequence((0, shard)).generate_state(1)[0])
        environments, step = Environments(settings, games), 0
        stacks, running = environments.reset(), np.arange(settings.num_envs)
        while len(running):
            answers = log_probabilities(teacher, stacks[running])
            noise = np.random.default_rng((0, shard, step)).gumbel(size=answers.shape)
            actions = np.zeros(settings.num_envs, np.int64)
            actions[running] = (answers + noise).argmax(axis=1)
            for lane, answer in zip(running, answers, strict=True):
                episode = shard * settings.num_envs + lane
                (row,) = np.flatnonzero(
                    (recording.episodes == episode) & (recording.states["age"] == step)
                )
                np.testing.assert_array_equal(recording.log_probs[row], answer)
                assert recording.states["action"][row] == actions[lane]
            result, step = environments.step(actions), step + 1
            stacks, running = result.stacks, running[~result.ended[running]]


def test_a_longer_recording_begins_with_the_shorter(tmp_path, recording, settings, teacher):
    folder = tmp_path / "pong"
    short = record(folder, settings, teacher, num_states=100)
    files = contents(folder)
    record(folder, settings, teacher, num_states=180)
    assert contents(folder) == contents(recording.folder)
    assert all(contents(folder)[name] == files[name] for name in files if name != INDEX_FILE)
    np.testing.assert_array_equal(short.states, recording.states[: short.num_states])


def test_an_interrupted_recording_goes_on_as_if_never_stopped(
    tmp_path, recording, settings, teacher, messages, monkeypatch
):
    folder, left, step = tmp_path / "pong", [None] * 39, Environments.step

    def counted(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Environments, "step", counted)
        with pytest.raises(KeyboardInterrupt):
            record(folder, settings, teacher, num_states=180)
    assert Recording(folder).num_states == 60  # whole at any time
    (folder / "shard-00001.frames.0123abcd.tmp").write_bytes(b"left by kill -9")
    (folder / "shard-00007.states.npy").write_bytes(b"of no shard that counts")
    record(folder, settings, teacher, num_states=180)
    assert contents(folder) == contents(recording.folder)
    assert messages == [f"Recording {folder}: going on after 60 states."]


@pytest.fixture
def copied(tmp_path, recording):
    folder = tmp_path / "pong"
    shutil.copytree(recording.folder, folder)
    return folder


@pytest.mark.parametrize("name", ["shard-00001.frames", "shard-00000.states.npy"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(copied, settings, teacher, name, harm):
    path = copied / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-1] ^= 1
    path.write_bytes(content[:-1] if harm == "cut" else content)
    if harm == "remove":
        path.unlink()
    for num_states in (180, 240):
        with pytest.raises(ValueError, match=f"damaged recording: .*{name}.*remake=True"):
            record(copied, settings, teacher, num_states=num_states)
    if harm != "flip":  # these are seen without checksums, too
        with pytest.raises(ValueError, match=f"damaged recording: .*{name}"):
            Recording(copied, verify=False)


def test_a_damaged_recording_is_remade_on_demand(copied, recording, settings, teacher):
    for name in ("shard-00001.frames", INDEX_FILE):
        (copied / name).write_bytes(b"{")
    made = record(copied, settings, teacher, num_states=60, remake=True)
    np.testing.assert_array_equal(made.states, recording.states[:60])


@pytest.mark.parametrize("change", [{"shards": []}, {"sha256": None}, {"more": 1}])
def test_a_changed_index_is_named(copied, settings, teacher, change):
    index = {**json.loads((copied / INDEX_FILE).read_text()), **change}
    (copied / INDEX_FILE).write_text(json.dumps(index))
    text = r"damaged recording: .*index\.json .*does not have its own checksum"
    with pytest.raises(ValueError, match=text):
        Recording(copied)
    with pytest.raises(ValueError, match=text):
        record(copied, settings, teacher, num_states=180)


def test_an_unreadable_index_and_a_missing_recording_are_named(copied, tmp_path):
    (copied / INDEX_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"damaged recording: .*index\.json \(is not readable"):
        Recording(copied)
    with pytest.raises(FileNotFoundError, match=r"no recording at .*nowhere"):
        Recording(tmp_path / "nowhere")


def test_a_recording_older_than_a_setting_is_not_made_again(copied, settings, teacher, messages):
    index = json.loads((copied / INDEX_FILE).read_text())
    del index["identity"]["settings"]["fire_on_life_loss"]
    shards = [stored.Shard(**shard) for shard in index["shards"]]
    stored.write_index(copied, index["identity"], shards)
    record(copied, settings, teacher, num_states=32)
    assert messages == []


@pytest.mark.parametrize("remake", [False, True])
def test_an_earlier_format_is_refused_and_kept(tmp_path, settings, teacher, remake):
    (tmp_path / "frames.npy").write_bytes(b"of the first format")
    (tmp_path / INDEX_FILE).write_text(json.dumps({"format": 1, "settings": {}}))
    before = contents(tmp_path)
    message = f"must have format {FORMAT_VERSION}, got 1, of another .* delete the folder"
    with pytest.raises(ValueError, match=message):
        Recording(tmp_path)
    with pytest.raises(ValueError, match=r"frames\.npy" if remake else message):
        record(tmp_path, settings, teacher, num_states=20, remake=remake)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {"noop_max": 3}}, "noop_max: 30 instead of 3"),
        ({"teacher": 1}, "teacher_sha256"),
        ({"behavior": Behavior(epsilon=0.1)}, "(epsilon: 0.0 instead of 0.1)"),
    ],
)
def test_another_recording_is_replaced_with_a_message(
    copied, settings, small_teacher, messages, change, named
):
    asked = {"num_states": 20, **change}
    asked["settings"] = dataclasses.replace(settings, **change.get("settings", {}))
    asked["teacher"] = small_teacher(seed=change.get("teacher", 0))
    made = record(copied, **asked)
    assert made.num_states == 60
    assert len(contents(copied)) == 4
    assert len(messages) == 1
    assert "made with other settings" in messages[0]
    assert named in messages[0]


def test_what_cannot_be_recorded_replaces_nothing(copied, settings, small_teacher):
    before = contents(copied)
    with pytest.raises(ValueError, match=r"teacher must have 6 .*, got 5"):
        record(copied, settings, small_teacher(num_actions=5), num_states=40)
    no_fire = dataclasses.replace(settings, game="freeway", fire_on_life_loss=True)
    with pytest.raises(ValueError, match="fire_on_life_loss must be false for freeway, which has"):
        record(copied, no_fire, small_teacher(num_actions=3), num_states=40)
    assert contents(copied) == before


@pytest.mark.parametrize("with_recording", [False, True])
def test_a_folder_of_other_things_is_never_deleted(copied, settings, teacher, with_recording):
    if not with_recording:
        shutil.rmtree(copied)
        copied.mkdir()
    (copied / "thesis.tex").write_text("years of work")
    (copied / "frames.npy").write_text("somebody's frames")
    before = contents(copied)
    for change in ({"remake": True}, {"seed": 5}):
        with pytest.raises(ValueError, match=r"must hold .*frames\.npy', 'thesis\.tex"):
            record(copied, settings, teacher, num_states=40, **change)
    assert contents(copied) == before
    if with_recording:  # it is used and made longer all the same
        record(copied, settings, teacher, num_states=240)
        assert contents(copied).items() > {"thesis.tex": b"years of work"}.items()


@pytest.mark.skipif(os.name == "nt", reason="folders are not made read-only this way")
def test_neighbors_that_recording_did_not_make_stay(tmp_path, settings, teacher):
    """What people name a folder that they put aside: pong.old, and names that writers like."""
    kept = [tmp_path / f"pong.{ending}" for ending in ("old", "partial", "writing", "tmp")]
    for folder in kept:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    for num_states in (20, 60):
        record(tmp_path / "pong", settings, teacher, num_states=num_states)
    other = dataclasses.replace(settings, sticky=True)
    record(tmp_path / "pong", other, teacher, num_states=20)
    assert [(folder / "mine.txt").read_text() for folder in kept] == ["mine"] * 4


def test_a_finished_recording_is_used_without_writing(copied, settings, teacher, monkeypatch):
    def refused(*_, timeout=None):  # noqa: ARG001
        raise PermissionError(errno.EACCES, "Permission denied")

    (copied / LOCK_FILE).unlink()
    monkeypatch.setattr(_files.FileLock, "acquire", refused)  # the tests may be root's
    copied.chmod(0o500)
    try:
        assert record(copied, settings, teacher, num_states=180).num_states == 180
        with pytest.raises(OSError, match=r"cannot be locked.*\.lock"):
            record(copied, settings, teacher, num_states=240)
    finally:
        copied.chmod(0o700)


def test_two_at_once_make_one_recording_and_one_says_that_it_waits(
    tmp_path, settings, teacher, monkeypatch, caplog
):
    folder = tmp_path / "pong"
    caplog.set_level("INFO", "lightning_sobolev")
    arrived, made = threading.Event(), []
    step = Environments.step

    def slowly(*arguments):
        arrived.set()
        while "waiting" not in caplog.text:
            threading.Event().wait(0.01)
        return step(*arguments)

    monkeypatch.setattr(Environments, "step", slowly)

    def work():
        made.append(record(folder, settings, teacher, num_states=60, progress=False))

    first, second = (threading.Thread(target=work) for _ in range(2))
    first.start()
    arrived.wait()
    second.start()
    first.join()
    second.join()
    assert [one.num_states for one in made] == [60, 60]
    assert f"{folder / LOCK_FILE}: another process holds this lock, waiting for it." in caplog.text


@contextmanager
def full_disk(size):
    """Let no file grow beyond a size: the kernel then refuses to write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "name"),
    [(423_000, "shard-00000.frames"), (300, "index.json")],  # all but the last frames
)
def test_a_full_disk_names_the_file_and_heals(tmp_path, settings, teacher, monkeypatch, size, name):
    folder = tmp_path / "pong"
    if name == INDEX_FILE:
        monkeypatch.setattr(stored, "write_shard", lambda *_: stored.Shard([30] * 2, "", ""))
    with full_disk(size), pytest.raises(OSError, match=re.escape(str(folder / name))):
        record(folder, settings, teacher, num_states=60)
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize("who", ["teacher", "player"])
def test_answers_that_are_no_numbers_are_refused(tmp_path, settings, small_teacher, who):
    teacher, broken = small_teacher(), small_teacher()
    torch.nn.init.constant_(broken.head.bias, float("inf"))
    options = {"num_states": 20}
    if who == "player":
        options |= {"behavior": Behavior(beta=0.5), "player": broken}
    with pytest.raises(ValueError, match=f"{who} must answer with finite numbers, got .*nan"):
        record(tmp_path / "pong", settings, broken if who == "teacher" else teacher, **options)
    assert not (tmp_path / "pong" / INDEX_FILE).exists()


def test_wrong_numbers_are_refused(tmp_path, settings, teacher, small_teacher):
    with pytest.raises(ValueError, match=r"teacher must have 6 outputs for pong \(NOOP.*got 4"):
        record(tmp_path / "pong", settings, small_teacher(num_actions=4), num_states=40)
    for count in (0, -1, "many", 1.5):
        with pytest.raises(ValueError, match=f"num_states must be a whole number .*{count!r}"):
            record(tmp_path / "pong", settings, teacher, num_states=count)


def test_the_teacher_is_left_as_it_was(tmp_path, settings, small_teacher):
    teacher = small_teacher().train()
    record(tmp_path / "pong", settings, teacher, num_states=8)
    assert teacher.training
