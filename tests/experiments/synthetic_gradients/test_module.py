import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import LossModel
from lightning_sobolev.experiments.synthetic_gradients.module import DecoupledModule
from lightning_sobolev.experiments.synthetic_gradients.probe import probe
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


@pytest.fixture(autouse=True)
def double(float64):
    """Laws are checked to rounding error."""


@pytest.fixture
def batches(generator):
    def draw(network=vectors, count=STEPS):
        drawn = [batch(network, generator) for _ in range(count)]
        return [{"x": x, "y": y} for x, y in drawn]

    return draw


def module(network=vectors, cuts=3, **options):
    settings = {"lr": 0.1, "model_lr": 0.1, "max_steps": STEPS, "optimizer": "sgd"}
    return DecoupledModule(
        network(),
        cuts,
        input_shape=SHAPES[network],
        num_classes=CLASSES,
        **{**settings, **options},
    )


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
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
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
    plain = trained_plainly(network, drawn)
    for ours, true in zip(weights(decoupled.sections), weights(plain), strict=True):
        assert_close(ours, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", [vectors, maps])
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.model])
def test_a_step_with_oracles_is_a_step_of_plain_training(network, kind, batches):
    drawn = batches(network, 1)
    net = network()
    oracle = GradientOracle if kind == "direct" else Oracle
    models = [oracle(net[at:]) for at in (1, 2, 3)]
    decoupled = module(network, kind=kind, models=models)
    fit(decoupled, drawn, steps=1)
    plain = trained_plainly(network, drawn)
    for ours, true in zip(weights(decoupled.sections), weights(plain), strict=True):
        assert_close(ours, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_moves_by_its_own_optimizer_and_a_batch_is_a_step(kind, batches):
    decoupled = module(kind=kind, lr=0.2, model_lr=0.05)
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
    assert rates == [0.2] * (4 - still) + [0.05] * len(decoupled.models)
    for optimizer in running.optimizers:  # half way down
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            optimizer.param_groups[0]["initial_lr"] / 2
        )
    kept = [{id(p) for g in o.param_groups for p in g["params"]} for o in running.optimizers]
    assert sum(map(len, kept)) == len(set.union(*kept))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged(kind, batches):
    decoupled = module(kind=kind)
    running = fit(decoupled, batches())
    logged = set(running.callback_metrics)
    assert {"train/loss", "train/accuracy", "train/epochs"} <= logged
    assert running.callback_metrics["train/epochs"] == 1.0
    names = {"direct": ["gradient"], "vfbn": ["derivative"], "critic": ["value"]}
    names |= {"sobolev": ["value", "derivative"], "noprop": [], "backprop": []}
    expected = {f"train/cut_{cut}/{name}" for cut in (1, 2, 3) for name in names[kind]}
    assert {key for key in logged if key.startswith("train/cut_")} == expected
    assert ("val/gradient_cosine" in logged) == bool(names[kind])
    tested = trainer().test(decoupled, loader(batches()), verbose=False)[0]
    assert {"test/loss", "test/accuracy"} <= set(tested)
    assert ("test/gradient_cosine" in tested) == bool(names[kind])
    assert ("test/cut_3/value_nmse" in tested) == (kind in ("vfbn", "critic", "sobolev"))


def test_an_oracle_is_as_near_as_can_be(batches):
    net = vectors()
    models = [Oracle(net[at:]) for at in (1, 2, 3)]
    decoupled = module(models=models)
    tested = trainer().test(decoupled, loader(batches()), verbose=False)[0]
    for cut in (1, 2, 3):
        assert tested[f"test/cut_{cut}/gradient_cosine"] == pytest.approx(1)
        assert tested[f"test/cut_{cut}/norm_ratio"] == pytest.approx(1)
        assert tested[f"test/cut_{cut}/value_nmse"] == pytest.approx(0, abs=1e-20)


def test_the_probe_is_the_gradient_of_the_whole_network(batches):
    (drawn,) = batches(count=1)
    decoupled = module(kind="direct", cuts=[2])
    models = learned(list(decoupled.models))
    with torch.inference_mode():
        found = probe(list(decoupled.sections), models, drawn["x"], drawn["y"], KINDS["direct"])
    h = decoupled.sections[0](drawn["x"]).detach().requires_grad_()
    cross_entropy(decoupled.sections[1](h), drawn["y"], reduction="sum").backward()
    assert_close(found[1].true.gradient, h.grad)
    said = models[0](h, drawn["y"]).detach()
    assert_close(found[1].said.gradient, said)
    cosine = torch.nn.functional.cosine_similarity(said, h.grad).mean()
    numbers = found[1].numbers()
    assert numbers["gradient_cosine"] == pytest.approx(float(cosine))
    assert numbers["norm_ratio"] == pytest.approx(float(said.norm() / h.grad.norm()))
    assert all(parameter.grad is None for parameter in decoupled.sections[0].parameters())


def test_the_probe_can_be_switched_off(batches):
    decoupled = module(probe_rows=0)
    tested = trainer().test(decoupled, loader(batches()), verbose=False)[0]
    assert set(tested) == {"test/loss", "test/accuracy"}


@pytest.mark.parametrize("kind", ["sobolev", "direct", "noprop"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(kind, batches, tmp_path):
    drawn = batches()
    whole = module(kind=kind, optimizer="adam")
    fit(whole, drawn)
    torch.manual_seed(3)
    first = module(kind=kind, optimizer="adam")
    running = fit(first, drawn[:2], steps=2)
    running.save_checkpoint(tmp_path / "half.ckpt")
    second = module(kind=kind, optimizer="adam")
    path = tmp_path / "half.ckpt"
    going_on = fit(second, drawn[2:], ckpt_path=path, weights_only=True)
    assert going_on.global_step == STEPS
    for ours, true in zip(weights(second), weights(whole), strict=True):
        assert_close(ours, true, rtol=0, atol=0)
    for ours, true in zip(second.scales, whole.scales, strict=True):
        assert ours.state == true.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, "kind must be one of .*'sobolev'.*, got 'magic'"),
        ({"cuts": [0]}, "cuts must be ascending numbers"),
        (
            {"models": [LossModel(nn.Linear(8, CLASSES))]},
            r"one for every cut of this kind \(3\), got 1",
        ),
        ({"kind": "noprop", "models": [nn.Identity()] * 3}, r"this kind \(0\), got 3"),
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


def test_losses_that_need_scaling_are_refused(monkeypatch, batches):
    running = trainer()
    monkeypatch.setattr(type(running), "precision", property(lambda _: "16-mixed"))
    with pytest.raises(ValueError, match="must need no loss scaling, got '16-mixed'"):
        running.fit(module(), loader(batches()), loader(batches()))
