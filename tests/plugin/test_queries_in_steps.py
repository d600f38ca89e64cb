"""Steps that ask a teacher at points of their own: the term is taken there, whatever the loop."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    NetworkTeacher,
    Recombine,
    SobolevCallback,
    SobolevLoss,
    SobolevMixin,
    SobolevSpec,
    SobolevTerm,
    with_queries,
)
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches, Table
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, trainer, weights

SPEC = SobolevSpec(
    terms=[SobolevTerm(projection="basis", num_projections=None, normalize="none", weight=0.5)]
)
TEACHER = mlp(seed=7)
POINTS = Recombine(0.5)


def asked(module, batch, batch_idx):
    generator = generator_for(3, module.global_rank, module.current_epoch, batch_idx)
    return with_queries(*batch, TEACHER, POINTS, generator)


class Asks(Regressor):
    seen = ()

    def training_step(self, batch, batch_idx):
        batch = asked(self, batch, batch_idx)
        self.seen = (*self.seen, batch)
        return super().training_step(batch, batch_idx)


class AsksByHand(ManualRegressor):
    def training_step(self, batch, batch_idx):
        return super().training_step(asked(self, batch, batch_idx), batch_idx)


class AsksInDicts(Asks):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class Mixed(SobolevMixin, Asks):
    def sobolev_spec(self):
        return SPEC


def dense(net, batches, accumulate=1, lr=0.05):
    """Train by plain SGD on the values and both Jacobians at the queries, one row at a time."""
    parameters = {name: p.detach().clone() for name, p in net.named_parameters()}

    def loss(parameters, x, y):
        def row(function):
            return vmap(jacrev(lambda point: function(point[None])[0]))(x)

        def student(point):
            return functional_call(net, parameters, (point,))

        difference = row(student) - row(TEACHER)
        return mse_loss(student(x), y) + 0.5 * difference.square().sum((1, 2)).mean()

    summed = None
    for number, (x, y) in enumerate(batches, start=1):
        slopes = torch.func.grad(loss)(parameters, x, y)
        scaled = {name: slope / accumulate for name, slope in slopes.items()}
        summed = scaled if summed is None else {n: summed[n] + scaled[n] for n in scaled}
        if number % accumulate == 0:
            parameters = {n: p - lr * summed[n] for n, p in parameters.items()}
            summed = None
    return torch.cat([p.reshape(-1) for p in parameters.values()])


def queries(epochs=1):
    """The batches of the training, with their queries, by the law that is documented."""
    return [
        with_queries(x, y, lambda x: TEACHER(x).detach(), POINTS, generator_for(3, 0, epoch, number))
        for epoch in range(epochs)
        for number, (x, y) in enumerate(points())
    ]
