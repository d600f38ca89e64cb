from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from lightning_sobolev.loading import OrderedBatches, ResumableLoader, ShuffledBatches, Table
from tests.plugin._trainers import QUIET

STEPS = 4


def shuffled(num_rows=10, batch_size=3, steps=STEPS, **changes):
    return ShuffledBatches(num_rows, batch_size, steps, **{"seed": 5, **changes})


def stream(batches, epochs):
    return [rows.tolist() for _ in range(epochs) for rows in batches]


class Recorder(pl.LightningModule):
    def __init__(self, failing_step=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.failing_step = failing_step
        self.seen = []

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.failing_step:
            raise RuntimeError("broken off")
        self.seen.append(batch[0].int().tolist())
        return self.weight * batch[0].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        rows = TensorDataset(torch.arange(10.0, dtype=torch.float64))
        return ResumableLoader(rows, shuffled(), self.trainer)


def train(module, *callbacks, ckpt_path=None, **changes):
    trainer = pl.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 3, **changes})
    trainer.fit(module, datamodule=Data(), ckpt_path=ckpt_path, weights_only=True)


def uninterrupted():
    return stream(shuffled(), 3)


@pytest.mark.parametrize("num_rows", [12, 14])  # of 14 the last two of a pass are left out
def test_every_batch_is_full_and_every_pass_takes_a_row_once(num_rows):
    batches = stream(shuffled(num_rows, 4, 5), epochs=3)
    assert [len(rows) for rows in batches] == [4] * 15
    for start in range(0, 15, 3):
        taken = set(chain(*batches[start : start + 3]))
        assert len(taken) == 12
        assert taken <= set(range(num_rows))


def test_a_batch_depends_on_seed_and_number_alone():
    expected = stream(shuffled(), 4)
    for number in (13, 0, 7, 6):
        assert shuffled().batch(number).tolist() == expected[number]
    assert stream(shuffled(steps=8), 2) == expected
    assert stream(shuffled(seed=6), 4) != expected


def test_without_a_number_of_steps_an_epoch_is_one_pass():
    assert len(shuffled(10, 3, None)) == 3
    assert len(shuffled(5, 100, None)) == 1
    assert sorted(stream(shuffled(5, 100, None), 1)[0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_every_batch_out(world_size):
    whole = stream(shuffled(25, 6), 2)
    shares = [
        stream(shuffled(25, 6, rank=rank, world_size=world_size), 2) for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part) for part in parts} == {6 // world_size}
        assert sorted(chain(*parts)) == sorted(batch)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [3, 4, 7, 8, 100])
def test_ordered_rows_come_once_in_equally_many_shares(num_rows, world_size):
    shares = [
        stream(OrderedBatches(num_rows, 3, rank=rank, world_size=world_size), 1)
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(part for share in shares for part in share)
    batches = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert list(chain(*batches)) == list(range(num_rows))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shuffled(0), "num_rows must be at least 1 .* got 0"),
        (lambda: shuffled(10, 0), "batch_size must be at least 1 .* got 0"),
        (lambda: shuffled(steps=0), "steps must be at least 1, got 0"),
        (lambda: shuffled(2, world_size=3), "num_rows .* each of 3 processes, got 2"),
        (lambda: shuffled(10, 3, world_size=2), "batch_size .* multiple of the 2 .* got 3"),
        (lambda: OrderedBatches(2, 8, world_size=3), "num_rows .* each of 3 processes, got 2"),
        (lambda: OrderedBatches(8, 2, world_size=3), "batch_size .* each of 3 processes, got 2"),
        (lambda: Table({"x": torch.zeros(3), "y": torch.zeros(4)}), "one common length"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_gives_the_asked_rows_of_every_column():
    table = Table({"x": torch.arange(6.0).reshape(3, 2), "y": torch.tensor([7, 8, 9])})
    batch = table[torch.tensor([2, 0])]
    assert len(table) == 3
    assert_close(batch["x"], torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    assert batch["y"].tolist() == [9, 7]


@pytest.mark.parametrize("given", range(2 * STEPS + 1))
def test_without_a_trainer_a_loader_goes_on_after_what_was_given(given):
    table = Table({"row": torch.arange(10)})
    first, resumed = (ResumableLoader(table, shuffled()) for _ in range(2))
    endless = (batch["row"].tolist() for _ in range(3) for batch in first)
    seen = [next(endless) for _ in range(given)]
    resumed.load_state_dict(first.state_dict())
    rest = [batch["row"].tolist() for _ in range(3) for batch in resumed]
    assert (seen + rest)[: 3 * STEPS] == uninterrupted()


@pytest.mark.parametrize("failing_step", [0, 1, STEPS - 1, STEPS, 3 * STEPS - 1])
def test_a_step_that_was_broken_off_is_given_again(failing_step, tmp_path):
    class Save(Callback):
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / "broken.ckpt")

    broken, resumed = Recorder(failing_step), Recorder()
    with pytest.raises(RuntimeError, match="broken off"):
        train(broken, Save())
    train(resumed, ckpt_path=tmp_path / "broken.ckpt")
    assert broken.seen + resumed.seen == uninterrupted()


class SaveAt(Callback):
    def __init__(self, path, hook, steps):
        def save(trainer, *_):
            if trainer.global_step == steps and not path.exists():
                trainer.save_checkpoint(path)
                trainer.should_stop = True

        setattr(self, hook, save)


@pytest.mark.parametrize(
    ("hook", "steps"),
    [
        ("on_train_batch_end", 2),
        ("on_train_batch_end", STEPS),
        ("on_train_epoch_end", STEPS),
        ("on_train_epoch_start", STEPS),
        ("on_train_batch_start", STEPS + 1),
        ("on_train_end", 2 * STEPS),
    ],
)
def test_a_run_goes_on_from_a_checkpoint_of_any_moment(hook, steps, tmp_path):
    path = tmp_path / "saved.ckpt"
    train(Recorder(), SaveAt(path, hook, steps), max_steps=2 * STEPS, max_epochs=-1)
    resumed = Recorder()
    train(resumed, ckpt_path=path, max_steps=3 * STEPS, max_epochs=-1)
    assert resumed.seen == uninterrupted()[steps:]


@pytest.mark.parametrize(
    "changes",
    [
        {"reload_dataloaders_every_n_epochs": 1},
        {"limit_train_batches": 3, "max_epochs": 4},
        # One process of the strategy that would replace a sampler by one of its own.
        {"strategy": "ddp"},
    ],
    ids=str,
)
def test_neither_short_epochs_new_loaders_nor_several_processes_change_the_order(changes):
    module = Recorder()
    train(module, **changes)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert module.seen == uninterrupted()
