import random

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.images import datamodule
from lightning_sobolev.experiments.images.datamodule import ImageDataModule
from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled
from lightning_sobolev.experiments.images.signals import SignalDataModule


@pytest.fixture
def build(monkeypatch):
    """Thirty images in which the value of a pixel says which image it is."""
    images = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 1, 6, 6)
    train, test = Labeled(images, torch.arange(30) % 10), Labeled(images[:5], torch.arange(5))
    found = ImageSet(train, test, tuple("0123456789"))
    monkeypatch.setitem(datamodule.IMAGES, "fashion_mnist", lambda *_, **__: found)

    def built(**options):
        data = ImageDataModule(**{"num_validation": 6, "batch_size": 8, **options})
        data.setup()
        return data

    return built


def test_pixels_have_mean_zero_and_deviation_one(build):
    x = build().tables["train"][torch.arange(24)]["x"]
    assert_close(x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(x.std(), torch.tensor(1.0), atol=1e-5, rtol=0)
    pixels = build(standardize=False).tables["train"]
    rows = torch.arange(24)
    assert_close(pixels[rows]["x"], pixels.columns["x"].float()[rows] / 255, rtol=0, atol=0)


def test_splits_share_no_image_and_do_not_depend_on_the_seed(build):
    def images(data, stage):
        return set(data.tables[stage].columns["x"][:, 0, 0, 0].tolist())

    first, second = build(seed=0), build(seed=1)
    assert images(first, "train") | images(first, "val") == set(range(30))
    assert not images(first, "train") & images(first, "val")
    assert images(first, "val") == images(second, "val") == images(build(num_train=5), "val")
    orders = [[b["y"].tolist() for b in d.train_dataloader()] for d in (first, build(), second)]
    assert orders[0] == orders[1] != orders[2]
    assert [len(labels) for labels in orders[0]] == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "imagenet"}, "images must be one of .*fashion_mnist.*, got 'imagenet'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_validation": 30}, "must leave room for each other in 30 images, got 30 and None"),
        ({"num_train": 25}, "got 6 and 25"),
    ],
)
def test_wrong_settings_are_named(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_signals_are_those_of_the_package_and_leave_its_seeds_behind():
    np.random.seed(5)
    random.seed(5)
    expected = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)
    data = SignalDataModule(batch_size=32, steps_per_epoch=3, seed=1)
    data.setup()
    assert (np.random.random(), random.random()) == expected
    assert (len(data.training_points()), len(data.test_points())) == (4000, 1000)
    batches = list(data.train_dataloader())
    assert [batch["x"].shape for batch in batches] == [(32, 1, 40)] * 3
    assert batches[0]["y"].dtype == torch.int64
    assert data.test_points().columns["y"].unique().tolist() == list(range(10))
    (validation,) = (batch["x"] for batch in data.val_dataloader())
    assert len(validation) == 1000
    assert not torch.equal(validation, data.test_points().columns["x"])
