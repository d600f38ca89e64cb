"""MNIST-1D: 4,000 training and 1,000 test signals of 40 points, drawn from ten classes.

Source: Greydanus and Kobak 2024, Scaling Down Deep Learning with MNIST-1D (ICML). Apache-2.0.
"""

from functools import cache

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lightning_sobolev.experiments.images.image_set import SplitDataModule
from lightning_sobolev.loading import Table


class SignalDataModule(SplitDataModule):
    """MNIST-1D, generated where it is needed (extra ``signals``); nothing is downloaded.

    A batch is ``{"x": [batch, 1, 40], "y": [batch]}``, standardized. The signals do not depend on
    the seed: they are those of the package's own defaults. Those for validation have another seed.

    Args:
        batch_size: Signals of a training batch.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of the order.
    """

    def __init__(self, *, batch_size: int = 64, steps_per_epoch: int = 500, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=seed)

    @override
    def setup(self, stage: str | None = None) -> None:
        self.tables = _generated()


@cache  # two seconds
def _generated() -> dict[str, Table]:
    from mnist1d.data import get_dataset_args, make_dataset

    others = get_dataset_args()
    others.seed += 1
    others.num_samples = 1250  # 1,000 of them in the part that is used
    with isolate_rng():  # the package seeds the generators of the whole process
        made, other = make_dataset(), make_dataset(others)
    sets = {"train": (made, ""), "test": (made, "_test"), "val": (other, "")}
    tables = {}
    for stage, (found, end) in sets.items():
        x, y = (torch.from_numpy(found[f"{name}{end}"]) for name in "xy")
        tables[stage] = Table({"x": x.float()[:, None], "y": y.long()})
    return tables
