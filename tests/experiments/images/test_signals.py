import random

import numpy as np
import torch

from lightning_sobolev.experiments.images.signals import SignalDataModule


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
    assert len(batches) == 3
    assert batches[0]["x"].shape == (32, 1, 40)
    assert batches[0]["y"].dtype == torch.int64
    labels = data.test_points().columns["y"]
    assert labels.unique().tolist() == list(range(10))
    again = SignalDataModule(seed=2)
    again.setup()
    assert torch.equal(again.test_points().columns["x"], data.test_points().columns["x"])
