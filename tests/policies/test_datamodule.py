from itertools import chain

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import DAgger, RecordingOptions, SplitSizes
from lightning_sobolev.atari.recordings.dataset import STRIDE
from lightning_sobolev.policies import (
    EnvSettings,
    PolicyDataModule,
    PolicyMLP,
    PolicyRecording,
    PolicyStudent,
)
from tests.atari.recordings._training import StopIn, Stopped, fit
from tests.policies._policies import small_policy

SETTINGS = EnvSettings("CartPole-v1", num_envs=2, max_episode_steps=20)
SIZES = SplitSizes(train=60, validation=10, test=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


def module_of(root, **changes):
    quiet = RecordingOptions(progress=False)
    options = {"sizes": SIZES, "batch_size": 8, "recording": quiet, **changes}
    data = PolicyDataModule(root, SETTINGS, options.pop("teacher", small_policy()), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def indices(loader):
    return np.concatenate([batch["index"] for batch in loader])


def test_batches_hold_what_was_recorded(root):
    data = module_of(root)
    recording = PolicyRecording(root / "CartPole-v1")
    for batch in data.val_dataloader():
        assert_close(batch["x"], torch.from_numpy(recording.observations[batch["index"]]))
        assert_close(batch["log_probs"], torch.from_numpy(recording.answers[batch["index"]]))
        assert batch["x"].dtype == torch.float32


def test_no_episode_is_in_two_parts(root):
    data = module_of(root, steps_per_epoch=40)
    recording = PolicyRecording(root / "CartPole-v1")
    lengths = [*chain(*recording.episode_lengths)]
    episode = np.repeat(np.arange(len(lengths)), lengths)
    loaders = (data.test_dataloader(), data.val_dataloader(), data.train_dataloader())
    test, validation, train = (set(episode[indices(loader)]) for loader in loaders)
    assert max(test) < min(validation) <= max(validation) < min(train)


def test_a_fraction_is_part_of_a_larger_one(root):
    parts = [module_of(root, fraction=share)._dataset("train").index for share in (0.25, 1.0)]
    assert len(parts[0]) == 15
    assert set(parts[0]) < set(parts[1])


def test_units_are_those_of_the_training_states(root):
    data = module_of(root)
    rows = PolicyRecording(root / "CartPole-v1").observations[data._dataset("train").index]
    mean, std = data.units
    assert_close(
        mean.double(), torch.from_numpy(rows.astype(np.float64).mean(0)), rtol=1e-5, atol=1e-6
    )
    assert_close(
        std.double(), torch.from_numpy(rows.astype(np.float64).std(0)), rtol=1e-5, atol=1e-6
    )


class Learning(pl.LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = PolicyStudent(PolicyMLP([4, 8], 2), 4)
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["index"].tolist())
        return -(batch["log_probs"].exp() * self.net(batch["x"]).log_softmax(-1)).sum(-1).mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize("step", [3, 5])
def test_rounds_that_were_broken_off_go_on(root, step, tmp_path):
    def fit_rounds(folder, *callbacks, **options):
        dagger = DAgger(3, num_states=20)
        return fit(module_of(root), folder, dagger, *callbacks, student=Learning(), **options)

    straight = fit_rounds(tmp_path)
    assert {number // STRIDE for batch in straight.seen[6:] for number in batch} == {0, 1, 2}
    with pytest.raises(Stopped):
        fit_rounds(tmp_path, StopIn(step))
    resumed = fit_rounds(tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.seen == straight.seen[step:]
    for name, weight in straight.state_dict().items():
        assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


class Seen(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net, self.batches = net, []

    def test_step(self, batch):
        self.batches.append(batch)


@pytest.mark.parametrize("sees", [None, [1, 3]])
def test_a_batch_says_what_the_student_sees(root, sees):
    student = PolicyStudent(PolicyMLP([4 if sees is None else 2, 3], 2), 4, sees)
    student.standardize_by(torch.arange(4.0), torch.arange(1.0, 5.0))
    seen = Seen(student if sees else torch.nn.Linear(4, 2))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", **quiet)
    trainer.test(seen, module_of(root), verbose=False)
    (batch,) = seen.batches
    identity = {"student_mean": torch.zeros(4), "student_std": torch.ones(4)}
    told = {"student_mean": student.mean, "student_std": student.std} if sees else identity
    told["student_sees"] = torch.tensor(sees or [0, 1, 2, 3])
    for name, value in told.items():
        assert_close(batch[name], value.expand(10, -1))


def test_another_teachers_recording_is_not_served(root):
    data = module_of(root)
    other = PolicyDataModule(root, SETTINGS, small_policy(activation="relu"), sizes=SIZES)
    data.setup("fit")
    with pytest.raises(ValueError, match="must be this teacher's recording, long enough"):
        other.setup("fit")
    with pytest.raises(ValueError, match="train must be a number where it is recorded for"):
        PolicyDataModule(root, SETTINGS, small_policy(), sizes=SplitSizes(train=None))
