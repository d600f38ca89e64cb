"""Two processes know different numbers of rows and train as one process that sees them all."""

import sys

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher
from tests.kinds._by_hand import Step, distance, exact, fit, jacobian, mlp, numbers, slope, weights
from tests.plugin._processes import train_all, trained_by_two

X, Y, J = numbers(8, 3), numbers(8, 2, seed=1), numbers(8, 2, 3, seed=2)
UNKNOWN = {
    "three and one": [(1, 3, 5), (0,)],  # rows 0, 2, 4, 6 are the first process's
    "all and none": [(1, 3, 5, 7), ()],
    "none at all": [(1, 3, 5, 7), (0, 2, 4, 6)],
}


class Shared(Step):
    """Each process takes every second row."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [part[self.global_rank :: self.trainer.world_size] for part in batch]


class Alone(Shared):
    """The derivative is all there is to learn."""

    def training_step(self, batch, batch_idx):
        return 0.0 * super().training_step(batch, batch_idx)


def batches(name):
    partly = J.clone()
    for rows in UNKNOWN[name]:
        partly[list(rows)] = torch.nan
    return [(X, Y, J), (X, Y, partly), (X, Y, J)]


CASES = [
    (make, name, normalize)
    for make in (Shared, Alone)
    for name in UNKNOWN
    for normalize in ("none", "target")
]


def trained(number, **flags):
    make, name, normalize = CASES[number]
    module = make()
    term = {"normalize": normalize, "weight": 0.1}
    fit(module, batches(name), exact(BatchTeacher(jacobian=2), term=term), **flags)
    return weights(module)


def by_hand(number):
    make, name, normalize = CASES[number]
    net, sizes = mlp(), []
    for x, y, stored in batches(name):
        known = ~stored.isnan().flatten(1).any(1)
        loss = 0.0 if make is Alone else (net(x) - y).square().mean()
        if known.any():
            sizes.append(stored[known].square().flatten(1).sum(1).mean())
            term = distance(jacobian(net, x[known]), stored[known])
            scale = torch.stack(sizes).mean() if normalize == "target" else 1.0
            loss = loss + 0.1 * term / scale
        if torch.is_tensor(loss):
            torch.nn.utils.vector_to_parameters(weights(net) - slope(loss, net), net.parameters())
    return weights(net)


@pytest.mark.filterwarnings("ignore:.*no row of this batch has a known target")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_one_process_trains_as_by_hand(number):
    assert_close(trained(number), by_hand(number), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for number, found in enumerate(trained_by_two(__spec__.name, tmp_path / "weights.pt")):
        text = f"{CASES[number]}: {{}}".format
        assert_close(found, by_hand(number), rtol=1e-10, atol=1e-12, msg=text)


if __name__ == "__main__":
    train_all(sys.argv[1], trained, len(CASES))
