"""What else a Trainer can do: the taught student is the one that a plain loop gives."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._loops import by_hand as train_by_hand
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import as_loader, fit, points, trainer, weights

RANDOM = SobolevTerm(weight=0.1)
EXACT = SobolevTerm(weight=0.1, projection="basis", num_projections=None, normalize="none")


def callback(term=RANDOM, **options):
    spec = SobolevSpec(terms=[term])
    return SobolevCallback(**{"teacher": mlp(seed=7), "spec": spec, "seed": 3, **options})


def taught(module=None, data=None, /, *callbacks, **options):
    module = Regressor() if module is None else module
    fit(module, points() if data is None else data, callback(), *callbacks, **options)
    return weights(module)


def by_hand(batches=None, **options):
    return train_by_hand(batches, RANDOM, seed=3, **options)


@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [
        ("norm", lambda g: g * min(1.0, 0.5 / (g.norm() + 1e-6))),
        ("value", lambda g: g.clamp(-0.5, 0.5)),
    ],
)
def test_the_gradient_is_clipped_with_the_term_in_it(algorithm, clip):
    start, first = weights(Regressor()), list(points())[:1]
    plain = start - train_by_hand(first, RANDOM, seed=3, lr=1.0)
    options = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": algorithm}
    found = start - taught(Regressor(lr=1.0), as_loader(first), **options)
    assert_close(found, clip(plain), rtol=1e-12, atol=1e-12)
    assert (found - plain).norm() > 0.1


def test_overfit_batches():
    two = list(points())[:2]
    found = taught(overfit_batches=2, max_epochs=3)
    assert_close(found, by_hand(two * 3), rtol=1e-12, atol=1e-12)


def test_accumulation_that_changes_between_epochs():
    found = taught(None, None, GradientAccumulationScheduler({0: 1, 1: 3}), max_epochs=2)
    module, used = Regressor(), callback()
    fit(module, points(), used)
    used.load_state_dict(used.state_dict())  # go on with its scales
    fit(module, points(), used, accumulate_grad_batches=3)
    assert_close(found, weights(module), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"detect_anomaly": True}, {"profiler": "simple"}])
def test_watching_changes_nothing(options):
    assert_close(taught(**options), by_hand())


class TakesIterator(Regressor):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return mse_loss(self(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_a_step_that_fetches_its_batch_itself():
    assert_close(taught(TakesIterator()), by_hand())


class Both(Regressor):
    def training_step(self, batch, batch_idx):
        (x, y), (u, v) = batch["a"], batch["b"]
        return mse_loss(self(x), y) + mse_loss(self(u), v)


class Joined(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = (torch.cat([first, second]) for first, second in zip(*batch, strict=True))
        return 2.0 * mse_loss(self(x), y)


@pytest.mark.parametrize("combine", [dict, lambda d: CombinedLoader(d, "max_size_cycle")])
def test_several_loaders_teach_as_one_that_joins_their_batches(combine):
    loaders = {"a": points(size=16), "b": points(seed=4)}
    several, one = Both(), Joined()
    fit(several, combine(loaders), callback(EXACT, call="all"))
    batches = list(CombinedLoader(loaders, "max_size_cycle"))
    joined = as_loader([(batch["a"], batch["b"]) for batch, _, _ in batches])
    fit(one, joined, callback(EXACT))
    assert_close(weights(several), weights(one), rtol=1e-12, atol=1e-12)


class First(Regressor):
    def training_step(self, batch, batch_idx):
        return mse_loss(self(batch["a"][0]), batch["a"][1])


def test_derivatives_of_one_of_several_loaders():
    teacher = mlp(seed=7)
    with_jacobians = [
        (x, y, torch.func.vmap(torch.func.jacrev(teacher))(x).detach()) for x, y in points()
    ]
    loaders = {"a": as_loader(with_jacobians), "b": points(seed=4)}
    module = First()
    fit(module, loaders, callback(teacher=BatchTeacher("a.2")))
    assert_close(weights(module), by_hand(), rtol=1e-12, atol=1e-12)


class Path(L.Callback):
    def __init__(self):
        self.starts = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(weights(pl_module))


def test_stochastic_weight_averaging_averages_the_taught_student():
    path, plain = Path(), Path()
    averaging = StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)
    found = taught(None, None, averaging, path, max_epochs=5)
    taught(None, None, plain, max_epochs=5)
    assert_close(path.starts, plain.starts, rtol=0, atol=0)
    assert_close(found, torch.stack(path.starts[1:]).mean(0))


@pytest.mark.parametrize("by_tuner", [False, "behind", True])
def test_the_learning_rate_finder_searches_with_the_term_and_leaves_no_trace(by_tuner, tmp_path):
    options = {"enable_checkpointing": True, "max_epochs": 7, "default_root_dir": tmp_path}
    search = {"min_lr": 1e-4, "max_lr": 1e-2, "early_stop_threshold": None}
    found, used = Regressor(), callback()
    if by_tuner is True:
        trains = trainer(used, **options)
        result = Tuner(trains).lr_find(found, points(), num_training=20, **search)
        assert used.state_dict() == callback().state_dict()
        trains.fit(found, points())
    else:
        finder = LearningRateFinder(num_training_steps=20, **search)
        both = (finder, used) if by_tuner == "behind" else (used, finder)
        fit(found, points(), *both, **options)
        result = finder.optimal_lr
    assert found.lr != Regressor().lr
    expected = train_by_hand(7 * list(points()), RANDOM, seed=3, lr=found.lr)
    assert_close(weights(found), expected, rtol=1e-11, atol=1e-11)
    # The finder keeps a running mean that forgets 2 % a step, corrected for one step too many.
    share, (x, y) = (1.0 - 0.98) / (1.0 - 0.98**2), next(iter(points()))
    assert result.results["loss"][0] > 1.01 * share * mse_loss(mlp()(x), y).detach()


class Sized(L.LightningDataModule):
    def __init__(self, batch_size=2):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return points(batch_size=self.batch_size)


def test_the_batch_size_scaler_leaves_no_trace(tmp_path):
    module, data, used = Regressor(), Sized(), callback()
    trains = trainer(used, enable_checkpointing=True, default_root_dir=tmp_path)
    size = Tuner(trains).scale_batch_size(module, datamodule=data, max_trials=3, steps_per_trial=2)
    assert size == data.batch_size > 2
    assert used.state_dict() == callback().state_dict()
    trains.fit(module, datamodule=data)
    assert_close(weights(module), by_hand(points(batch_size=size)))


def test_every_stage_after_every_other():
    class AllStages(Regressor):
        def validation_step(self, batch, batch_idx):
            self.log("value", mse_loss(self(batch[0]), batch[1]))

        test_step = validation_step

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    module, used = AllStages(), callback()
    trains = trainer(used)
    for stage in (trains.validate, trains.test):
        stage(module, points(), verbose=False)
    trains.predict(module, points())
    trains.fit(module, points(), points(seed=4))
    trains.test(module, points(), verbose=False)
    assert_close(weights(module), by_hand())
    again = trainer(used)
    again.fit(module, points(), points(seed=4))  # goes on drawing where the first fit stopped
    assert used.state_dict()["counter"] == 6
    net = mlp()
    by_hand(net=net)
    assert_close(weights(module), by_hand(net=net, first=3), rtol=1e-12, atol=1e-12)


def test_two_fits_of_one_batch_have_directions_of_their_own():
    """The second fit's first batch has the number that the first fit's last one had."""
    used = callback()
    net, batch = mlp(), list(points())[:1]
    for first in range(3):
        module = Regressor(mlp())
        fit(module, as_loader(batch), used)
        by_hand(batch, net=net, first=first)
        assert used.state_dict()["counter"] == first + 1
        assert_close(weights(module), weights(net), rtol=1e-12, atol=1e-12)
        net = mlp()
