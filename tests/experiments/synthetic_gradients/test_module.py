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
    GradientOracle,
    Oracle,
    batch,
    learned,
    maps,
    vectors,
)

STEPS = 4
SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.1)
COSINE = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS)
equal = partial(assert_close, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def double(float64):
    """Laws are checked to rounding error."""


@pytest.fixture
def batches(generator):
    def draw(network=vectors, count=STEPS):
        drawn = [batch(network, generator) for _ in range(count)]
        return [{"x": x, "y": y} for x, y in drawn]

    return draw


def module(network=vectors, cuts=3, optimizer=SGD, **options):
    shape = {"input_shape": SHAPES[network], "num_classes": CLASSES}
    return DecoupledModule(network(), cuts, optimizer, scheduler=COSINE, **shape, **options)


def trainer(steps=STEPS):
    return pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
    )


def fit(decoupled, drawn, steps=STEPS, **options):
    running = trainer(steps)
    running.fit(decoupled, loader(drawn), loader(drawn[:1]), **options)
    return running


def loader(drawn):
    return DataLoader(drawn, batch_size=None)


def weights(part):
    return [parameter.detach().clone() for parameter in part.parameters()]


def trained_plainly(network, drawn):
    """Train a network as everybody does: one optimizer, one backward pass."""
    net = network()
    optimizer = SGD(net.parameters())
    schedule = COSINE(optimizer)
    for one in drawn:
        optimizer.zero_grad()
        cross_entropy(net(one["x"]), one["y"]).backward()
        optimizer.step()
        schedule.step()
    return net


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("cuts", [1, 3])
def test_back_propagation_in_sections_is_plain_training(network, cuts, batches):
    drawn = batches(network)
    decoupled = module(network, cuts, kind="backprop")
    running = fit(decoupled, drawn)
    assert running.global_step == STEPS
    equal(weights(decoupled.sections), weights(trained_plainly(network, drawn)))


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.model])
def test_a_step_with_oracles_is_a_step_of_plain_training(kind, batches):
    drawn = batches(maps, 1)
    net = maps()
    oracle = GradientOracle if kind == "direct" else Oracle
    decoupled = module(maps, kind=kind, models=[oracle(net[at:]) for at in (1, 2, 3)])
    fit(decoupled, drawn, steps=1)
    equal(weights(decoupled.sections), weights(trained_plainly(maps, drawn)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_moves_by_its_own_optimizer_and_a_batch_is_a_step(kind, batches):
    decoupled = module(kind=kind, model_optimizer=partial(torch.optim.SGD, lr=0.05))
    learned(decoupled.models)
    before = [weights(part) for part in (*decoupled.sections, *decoupled.models)]
    running = fit(decoupled, batches(), steps=2)
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


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged(kind, batches):
    decoupled, drawn = module(kind=kind), batches()
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


def test_an_oracle_is_as_near_as_can_be(batches):
    net, drawn = vectors(), batches()
    decoupled = module(models=[Oracle(net[at:]) for at in (1, 2, 3)])
    tested = trainer().test(decoupled, loader(drawn), verbose=False)[0]
    for cut in (1, 2, 3):
        assert tested[f"test/cut_{cut}/gradient_cosine"] == pytest.approx(1)
        assert tested[f"test/cut_{cut}/norm_ratio"] == pytest.approx(1)
        assert tested[f"test/cut_{cut}/value_nmse"] == pytest.approx(0, abs=1e-20)
    decoupled.probe_rows = 0
    unprobed = trainer().test(decoupled, loader(drawn), verbose=False)[0]
    assert set(unprobed) == {"test/loss", "test/accuracy"}


def test_predictions_are_compared_with_the_gradient_of_the_whole_network(batches):
    (drawn,) = batches(count=1)
    decoupled = module(kind="sobolev", cuts=[2])
    sections, models = list(decoupled.sections), learned(list(decoupled.models))
    with torch.inference_mode():
        found = gradient_error(sections, models, drawn["x"], drawn["y"], KINDS["sobolev"])
    h = sections[0](drawn["x"]).detach().requires_grad_()
    losses = cross_entropy(sections[1](h), drawn["y"], reduction="none")
    (true,) = torch.autograd.grad(losses.sum(), h)
    values = models[0](h, drawn["y"])
    (predicted,) = torch.autograd.grad(values.sum(), h)
    expected = {
        "gradient_cosine": cosine_similarity(predicted, true).mean(),
        "norm_ratio": predicted.norm() / true.norm(),
        "value_nmse": (values - losses).square().mean() / losses.var(correction=0),
    }
    assert found[1] == pytest.approx({name: float(e.detach()) for name, e in expected.items()})
    assert all(parameter.grad is None for parameter in sections[0].parameters())


@pytest.mark.parametrize("kind", ["sobolev", "direct", "noprop"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(kind, batches, tmp_path):
    drawn = batches()
    whole = module(kind=kind, optimizer=ADAM)
    fit(whole, drawn)
    torch.manual_seed(3)
    running = fit(module(kind=kind, optimizer=ADAM), drawn[:2], steps=2)
    running.save_checkpoint(path := tmp_path / "half.ckpt")
    second = module(kind=kind, optimizer=ADAM)
    going_on = fit(second, drawn[2:], ckpt_path=path, weights_only=True)
    assert going_on.global_step == STEPS
    assert_close(weights(second), weights(whole), rtol=0, atol=0)
    for ours, true in zip(second.stages, whole.stages, strict=True):
        assert ours.scales.state == true.scales.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, "kind must be one of .*'sobolev'.*, got 'magic'"),
        ({"cuts": [0]}, "cuts must be ascending numbers"),
        (
            {"models": [LossModel(nn.Linear(8, CLASSES))]},
            r"one for every cut of this kind \(3\), got 1",
        ),
        ({"models": [LossModel(nn.Linear(8, CLASSES))] * 3}, "model of cut 1 must take"),
    ],
)
def test_wrong_settings_are_refused_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_weight": -1.0}, "value_weight must be a finite number >= 0, got -1.0"),
        ({"derivative_weight": float("nan")}, "derivative_weight must be a finite number"),
        ({"normalize": "no"}, "normalize must be one of .*, got 'no'"),
    ],
)
def test_weights_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Matching(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "16-mixed", "must need no loss scaling, got '16-mixed'"),
        ("world_size", 2, "must live in one process, got a trainer with 2"),
    ],
)
def test_trainers_that_it_cannot_serve_are_refused(name, value, message, monkeypatch):
    decoupled = module()
    decoupled.trainer = trainer()
    monkeypatch.setattr(pl.Trainer, name, property(lambda _: value))
    with pytest.raises(ValueError, match=message):
        decoupled.on_fit_start()
