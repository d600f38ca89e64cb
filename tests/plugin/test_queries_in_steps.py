"""Steps that ask a teacher at points of their own: the term is taken there, whatever the loop."""

import lightning.pytorch as L
import pytest
import torch
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
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
from tests.plugin._trainers import as_loader, fit, points, trainer, weights

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
    def configure_sobolev(self):
        return exact()


def exact(teacher=None, module="net"):
    # every direction, unscaled: the mean over rows of the squared distance of both Jacobians
    term = SobolevTerm(projection="basis", num_projections=None, normalize="none", weight=0.5)
    return SobolevCallback(teacher or mlp(seed=7), SobolevSpec(terms=[term]), module=module)


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


def queries(data=None):
    """The batches with their queries; their answers are asked for here."""
    found = []
    for number, (x, y) in enumerate(points() if data is None else data):
        made, _ = with_queries(x, y, TEACHER, POINTS, generator_for(3, 0, 0, number))
        moved = (made != x).any(1, keepdim=True)
        found.append((made, torch.where(moved, TEACHER(made).detach(), y)))
    return found


def assert_trained_as(found, accumulate=1):
    assert_close(found, dense(mlp(), queries(), accumulate), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [Asks, AsksByHand])
def test_the_term_is_that_of_the_queries(kind):
    module = kind()
    fit(module, points(), exact())
    assert_trained_as(weights(module))


def test_a_mixin_takes_the_term_at_the_queries_too():
    module = Mixed()
    fit(module, points())
    assert_trained_as(weights(module))


def test_batches_may_be_dicts():
    module, batches = AsksInDicts(), [{"x": x, "y": y} for x, y in points()]
    fit(module, as_loader(batches), exact())
    assert_trained_as(weights(module))


def test_a_loop_of_ones_own_takes_the_term_at_the_queries_too():
    net, term = mlp(), exact().spec.terms
    optimizer, loss_fn = torch.optim.SGD(net.parameters(), lr=0.05), SobolevLoss(TEACHER, term)
    for x, y in queries():
        with loss_fn.observe(net):
            loss = mse_loss(net(x), y)
        optimizer.zero_grad()
        (loss + loss_fn()).backward()
        optimizer.step()
    assert_trained_as(weights(net))


def test_batches_that_are_accumulated_have_queries_of_their_own():
    module = Asks()
    module.seen = ()
    data = points(size=32)
    fit(module, data, exact(), accumulate_grad_batches=2)
    expected = queries(data)
    assert_close(weights(module), dense(mlp(), expected, accumulate=2), rtol=1e-9, atol=1e-11)
    moved = [(q != x).any(1) for (q, _), (x, _) in zip(module.seen, data, strict=True)]
    assert len({tuple(rows.tolist()) for rows in moved}) > 1


class Ends(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def trained(folder, *callbacks, **options):
    """Two epochs of four batches."""
    module = Asks()
    module.seen = ()
    used = trainer(exact(), *callbacks, max_epochs=2, default_root_dir=folder)
    x, y = points(size=32).dataset.tensors
    order = ShuffledBatches(32, 8, steps=4, seed=1)
    loader = ResumableLoader(Rows({"x": x, "y": y}), order, used)
    used.fit(module, loader, **options)
    return module


class Rows(Table):
    def __getitem__(self, rows):
        batch = super().__getitem__(rows)
        return batch["x"], batch["y"]


def test_in_the_middle_of_an_epoch_it_goes_on_with_the_queries_that_were_to_come(tmp_path):
    straight, ends = trained(tmp_path), Ends()
    ends.path = tmp_path / "five.ckpt"
    with pytest.raises(SystemExit):
        trained(tmp_path, ends)
    resumed = trained(tmp_path, ckpt_path=ends.path, weights_only=True)
    assert torch.equal(weights(resumed), weights(straight))
    assert len(resumed.seen) == 3
    for found, expected in zip(resumed.seen, straight.seen[5:], strict=True):
        assert all(map(torch.equal, found, expected))
