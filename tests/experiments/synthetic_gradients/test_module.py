import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev.experiments.synthetic_gradients.gradient_error import gradient_error
from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import LossModel
from lightning_sobolev.experiments.synthetic_gradients.module import DecoupledModule
from tests.experiments.synthetic_gradients._networks import (
    CLASSES,
    SHAPES,
    WITH_MODELS,
    Exact,
    batches,
    learned,
    maps,
    moved_along,
    predicted,
    stages,
    taught,
    vectors,
)
from tests.plugin._trainers import QUIET

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 4
SGD = partial(torch.optim.SGD, lr=0.1)
COSINE = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS)
equal = partial(assert_close, rtol=1e-10, atol=1e-12)


def module(network=vectors, cuts=3, **options):
    shape = {"input_shape": SHAPES[network], "num_classes": CLASSES}
    return DecoupledModule(network(), cuts, SGD, scheduler=COSINE, **shape, **options)


def trainer(steps=STEPS):
    options = {**QUIET, "precision": None, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(max_steps=steps, **options)


def loader(drawn):
    return DataLoader(drawn, batch_size=None)


def fit(decoupled, drawn, steps=STEPS, **resumed):
    running = trainer(steps)
    running.fit(decoupled, loader(drawn), loader(drawn[:1]), **resumed)
    return running


def weights(part):
    return [parameter.detach().clone() for parameter in part.parameters()]


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("cuts", [1, 3])
def test_back_propagation_in_sections_is_plain_training(network, cuts):
    """By one optimizer, with one backward pass."""
    drawn = batches(network, STEPS)
    decoupled, whole = module(network, cuts, kind="backprop"), network()
    assert fit(decoupled, drawn).global_step == STEPS
    optimizer = SGD(whole.parameters())
    schedule = COSINE(optimizer)
    for one in drawn:
        optimizer.zero_grad()
        cross_entropy(whole(one["x"]), one["y"]).backward()
        optimizer.step()
        schedule.step()
    equal(weights(decoupled.sections), weights(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_moves_by_its_own_optimizer_and_a_batch_is_a_step(kind):
    decoupled = module(kind=kind, model_optimizer=partial(torch.optim.SGD, lr=0.05))
    learned(decoupled.models)
    before = [weights(part) for part in (*decoupled.sections, *decoupled.models)]
    running = fit(decoupled, batches(vectors, 2), steps=2)
    assert running.global_step == 2
    moved = [
        any(not torch.equal(new, old) for new, old in zip(weights(part), then, strict=True))
        for part, then in zip((*decoupled.sections, *decoupled.models), before, strict=True)
    ]
    still = 3 if kind == "noprop" else 0
    assert moved == [False] * still + [True] * (len(moved) - still)
    rates = [o.param_groups[0]["initial_lr"] for o in running.optimizers]
    assert rates == [0.1] * (4 - still) + [0.05] * len(decoupled.models)
    now = [o.param_groups[0]["lr"] for o in running.optimizers]
    assert now == pytest.approx([rate / 2 for rate in rates])  # half way down
    kept = [{id(p) for g in o.param_groups for p in g["params"]} for o in running.optimizers]
    assert sum(map(len, kept)) == len(set.union(*kept))


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", WITH_MODELS)
@pytest.mark.parametrize("updates", [1, 3])
def test_models_are_updated_by_the_same_pair_and_sections_move_once(network, kind, updates):
    """Two cuts: the pair of the lower model is what the other said before it was updated."""
    (drawn,) = batches(network, 1)
    rate, x, y = 0.002, drawn["x"], drawn["y"]
    decoupled = module(
        network, [1, 3], kind=kind, model_updates=updates, matching=Matching(normalize="none"),
        model_optimizer=partial(torch.optim.SGD, lr=rate),
    )  # fmt: skip
    learned(decoupled.models)
    lowest, middle, highest = copy.deepcopy(list(decoupled.sections))
    models = copy.deepcopy(list(decoupled.models))
    leaf = lowest(x).detach().requires_grad_()
    h = middle(leaf)
    top = h.detach().requires_grad_()
    losses = cross_entropy(highest(top), y, reduction="none")
    (true,) = torch.autograd.grad(losses.sum(), top)
    slope = predicted(models[1], kind, h, y)
    (carried,) = torch.autograd.grad(h, leaf, slope)
    said = models[1](h, y).detach()
    pairs = [(leaf.detach(), said, carried), (top.detach(), losses.detach(), true)]
    moved = moved_along(lowest, x, predicted(models[0], kind, leaf, y))
    fit(decoupled, [drawn], steps=1)
    for model, new, (at, value, gradient) in zip(models, decoupled.models, pairs, strict=True):
        for _ in range(updates):
            slopes = taught(model, kind, at, y, value, gradient)
            for parameter, along in zip(model.parameters(), slopes, strict=True):
                parameter.data -= rate * along
        equal(weights(new), weights(model))
    equal(
        weights(decoupled.sections[0]),
        [p - 0.1 * g for p, g in zip(weights(lowest), moved, strict=True)],
    )


def test_a_target_counts_once_in_its_scale_and_schedules_go_on_once_a_step():
    decoupled, drawn = module(kind="sobolev", model_updates=3), batches(vectors, STEPS)
    learned(decoupled.models)
    running = fit(decoupled, drawn)
    counts = [count for stage in decoupled.stages for _, count in stage.scales.state.values()]
    assert counts == [STEPS] * 6
    assert [round(o.param_groups[0]["lr"], 12) for o in running.optimizers] == [0.0] * 7


@pytest.mark.parametrize("models", ["frozen", "exact"])
def test_without_schedules_and_where_a_model_has_nothing_to_train(models):
    """The section below moves along such a model all the same, and the other one learns."""
    kept = LossModel(nn.Linear(7, CLASSES)).requires_grad_(False)
    given = [kept if models == "frozen" else Exact(), LossModel(nn.Linear(6, CLASSES))]
    decoupled = DecoupledModule(
        vectors(), [1, 2], SGD, input_shape=SHAPES[vectors], num_classes=CLASSES, models=given,
        matching=Matching(normalize="none"), model_updates=2,
    )  # fmt: skip
    before = [weights(part) for part in (*decoupled.sections, *decoupled.models)]
    running = fit(decoupled, batches(vectors, 2), steps=2)
    after = [weights(part) for part in (*decoupled.sections, *decoupled.models)]
    moved = [
        any(not torch.equal(new, old) for new, old in zip(*pair, strict=True))
        for pair in zip(after, before, strict=True)
    ]
    assert moved == [True, True, True, False, True]
    assert [o.param_groups[0]["lr"] for o in running.optimizers] == [0.1] * 4


def test_checkpoints_of_other_updates_are_refused(tmp_path):
    drawn, path = batches(vectors, 2), tmp_path / "stored.ckpt"  # at the end of an epoch
    fit(module(model_updates=2), drawn, steps=2).save_checkpoint(path)
    assert fit(module(model_updates=2), drawn, ckpt_path=path).global_step == STEPS
    with pytest.raises(ValueError, match="model_updates of the checkpoint must be 3, got 2; set"):
        fit(module(model_updates=3), drawn, ckpt_path=path)
    content = torch.load(path, weights_only=True)
    del content["model_updates"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="must be 2, got none: it is of an earlier version"):
        fit(module(model_updates=2), drawn, ckpt_path=path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged(kind):
    decoupled, drawn = module(kind=kind), batches(vectors, STEPS)
    running = fit(decoupled, drawn)
    logged = set(running.callback_metrics)
    assert {"train/loss", "train/accuracy", "train/epochs"} <= logged
    assert running.callback_metrics["train/epochs"] == 1.0
    names = {"direct": ["gradient"], "vfbn": ["derivative"], "critic": ["value"]}
    names |= {"sobolev": ["value", "derivative"], "noprop": [], "backprop": []}
    expected = {f"train/cut_{cut}/{name}" for cut in (1, 2, 3) for name in names[kind]}
    assert {key for key in logged if key.startswith("train/cut_")} == expected
    assert ("val/gradient_cosine" in logged) == bool(names[kind])
    tested = trainer().test(decoupled, loader(drawn), verbose=False)[0]
    x, y = (torch.cat([one[name] for one in drawn]) for name in ("x", "y"))
    logits = nn.Sequential(*decoupled.sections)(x).detach()
    right = (logits.argmax(-1) == y).double().mean()
    assert tested["test/accuracy"] == pytest.approx(float(right))
    assert tested["test/loss"] == pytest.approx(float(cross_entropy(logits, y)))
    assert ("test/gradient_cosine" in tested) == bool(names[kind])
    assert ("test/cut_3/value_nmse" in tested) == (kind in ("vfbn", "critic", "sobolev"))
    decoupled.probe_rows = 0
    unprobed = trainer().test(decoupled, loader(drawn), verbose=False)[0]
    assert set(unprobed) == {"test/loss", "test/accuracy"}


def test_predictions_are_compared_with_the_gradient_of_the_whole_network():
    (drawn,) = batches(vectors, 1)
    x, y = drawn["x"], drawn["y"]
    cut = stages(vectors, [2], "sobolev")
    with torch.inference_mode():
        found = gradient_error(cut, x, y)
    h = cut[0].section(x).detach().requires_grad_()
    losses = cross_entropy(cut[1].section(h), y, reduction="none")
    (true,) = torch.autograd.grad(losses.sum(), h)
    slope, values = predicted(cut[0].model, "sobolev", h, y), cut[0].model(h, y)
    expected = {
        "gradient_cosine": cosine_similarity(slope, true).mean(),
        "norm_ratio": slope.norm() / true.norm(),
        "value_nmse": (values - losses).square().mean() / losses.var(correction=0),
    }
    assert found[1] == pytest.approx({name: float(e.detach()) for name, e in expected.items()})
    assert all(parameter.grad is None for parameter in cut[0].section.parameters())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "16-mixed", "precision must be without loss scaling, got '16-mixed'"),
        ("world_size", 2, "number of processes must be 1, got 2"),
    ],
)
def test_trainers_that_it_cannot_serve_are_refused(name, value, message, monkeypatch):
    decoupled = module()
    decoupled.trainer = trainer()
    monkeypatch.setattr(pl.Trainer, name, property(lambda _: value))
    with pytest.raises(ValueError, match=message):
        decoupled.on_fit_start()
