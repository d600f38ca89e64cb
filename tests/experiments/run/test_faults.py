"""Faults of disks, files and processes: what was saved stays, and the error names its cause."""

import os
import resource
import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch

from lightning_sobolev.experiments.run.checkpoints import LAST, checkpoint_to_resume
from lightning_sobolev.experiments.run.train import write_metrics
from tests.atari.recordings.test_record import full_disk
from tests.experiments.run._toy import composed
from tests.experiments.run.test_resume import straight, train

__all__ = ["straight"]


class Fills(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))


def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so(tmp_path, straight):
    text = r"step 4 could not be saved \(.*File too large.*\): .*last.ckpt holds step 3"
    with full_disk(resource.RLIM_INFINITY), pytest.raises(OSError, match=text):
        train(tmp_path, Fills(4), every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    found, _, steps = train(tmp_path, resume=True)
    assert steps == straight[2]
    assert torch.equal(found, straight[0])


class Fails(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5:
            raise KeyError("the fault itself")


def test_a_full_disk_does_not_hide_another_fault(tmp_path, caplog):
    with full_disk(resource.RLIM_INFINITY), pytest.raises(KeyError, match="the fault itself"):
        train(tmp_path, Fills(4), Fails(), every=100)
    assert "step 5 could not be saved" in caplog.text
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_full_disk_leaves_the_numbers_that_were_written_before(tmp_path):
    write_metrics(tmp_path, {"test/kl": 0.5})
    earlier = (tmp_path / "metrics.json").read_bytes()
    with full_disk(2000), pytest.raises(OSError, match="File too large"):
        write_metrics(tmp_path, {f"test/{i}": 0.5 for i in range(500)})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [earlier]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    train(folder, max_epochs=1)
    return (folder / "last.ckpt").read_bytes()


DAMAGES = {
    "empty": lambda content: content[:0],
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "one byte changed": lambda content: flipped(content),
    "something else": lambda content: content[::-1],
}


def flipped(content):
    # inside the first tensor, whose bytes torch stores as they are
    place = content.index(b"/data/0") + 200
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_before_anything_is_built(damage, last, saved, tmp_path):
    path = tmp_path / LAST
    path.parent.mkdir()
    path.write_bytes(saved)
    cfg = composed(tmp_path, f"ckpt={'last' if last else path}")
    assert checkpoint_to_resume(cfg) == path
    path.write_bytes(DAMAGES[damage](saved))
    with pytest.raises(ValueError, match=r"ckpt must be a whole checkpoint, got .*last\.ckpt: "):
        checkpoint_to_resume(cfg)


# Processes that are lost


def on_two_processes(folder, what, every, *more):
    module = [sys.executable, "-m", "tests.experiments.run._worker"]
    command = [*module, str(folder), what, str(every), *more]
    options = {"capture_output": True, "text": True, "timeout": 240}
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_the_last_checkpoint_goes_on_exactly(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert on_two_processes(whole, "nothing", 1).returncode == 0
    done = on_two_processes(broken, "killed", 1)
    assert done.returncode != 0
    assert "remote worker" in done.stderr
    assert on_two_processes(broken, "nothing", 1, "resume").returncode == 0
    found, expected = (
        torch.load(folder / "last.ckpt", weights_only=True) for folder in (broken, whole)
    )
    assert found["global_step"] == expected["global_step"] == 9
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 1000])
def test_a_fault_of_one_process_ends_all_and_is_named(every, tmp_path):
    """Saving would wait for processes that are somewhere else: it once hung here for good."""
    done = on_two_processes(tmp_path, "raises", every)
    assert done.returncode != 0
    assert "a fault of the second process alone" in done.stderr
    assert "step 4 is not saved (other processes may be anywhere)" in done.stderr
