"""Attacks, adversarial training and their numbers on networks whose answers are known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_sobolev.adversarial import ParticleSwarm
from lightning_sobolev.experiments.images.image_set import Labeled
from lightning_sobolev.experiments.images.module import stored_classifier
from lightning_sobolev.experiments.sensitivity.adversarial_training import (
    accuracy,
    examined,
    successes,
    trained_on,
)
from lightning_sobolev.experiments.sensitivity.attacks import Attack, Examples, attacks, measured
from lightning_sobolev.experiments.sensitivity.study import (
    AttackStudy,
    influence_numbers,
    influences_of,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    linear = nn.Linear(16, 3)
    linear.bias.data = -0.5 * linear.weight.data.sum(1)
    return nn.Sequential(nn.Flatten(), linear).requires_grad_(False).eval()


@pytest.fixture
def images(generator):
    return torch.rand(40, 1, 4, 4, generator=generator)


@pytest.fixture
def seen(model, images):
    labels = model(images).argmax(-1)
    labels[::4] = (labels[::4] + 1) % 3
    return Examples.of(model, images, labels)


def test_only_what_is_classified_correctly_is_attacked(model, seen):
    assert len(seen) == 30
    assert torch.equal(model(seen.images).argmax(-1), seen.labels)
    assert torch.equal(model(seen.images).topk(2).indices[:, 1], seen.targets)


def test_vulnerable_images_are_those_whose_own_class_is_least_likely(model, seen):
    """Three classes and sixteen pixels: the rank is full, and the influence is 1 / P - 1."""
    own = model(seen.images).softmax(-1).gather(1, seen.labels[:, None])[:, 0]
    torch.testing.assert_close(seen.most_vulnerable(5).images, seen.images[own.argsort()[:5]])
    numbers = influence_numbers(influences_of(model, seen)["plain"])
    assert numbers == {"is_odds": 1.0, "cut_differs": 0.0, "cut_is_zero": 0.0}


def test_the_authors_threshold_cuts_where_a_network_is_sure(model, seen):
    model[1].weight.data *= 30
    model[1].bias.data *= 30
    found = influences_of(model, seen)
    plain, sharper = (influence_numbers(found[name]) for name in ("plain", "sharpened"))
    assert plain["is_odds"] == sharper["is_odds"] == 1.0
    assert plain["cut_differs"] < sharper["cut_differs"]
    assert sharper["cut_is_zero"] > 0


SWARM = ParticleSwarm(radius=0.1, particles=6, iterations=4)


def test_every_attack_stays_in_the_ball_and_repeats_itself(model, seen):
    planned = list(attacks(model, seen, SWARM, num_pixels=3, seed=0))
    assert {attack.name for attack in planned} == {
        *("fgsm", "pgd", "pgd_long", "foolbox_pgd", "foolbox_noise"),
        *("swarm", "swarm_influence", "swarm_gradient", "swarm_random"),
    }
    for attack in planned:
        attacked = attack.run()
        assert (attacked - seen.images).abs().max() <= 0.1 + 1e-6, attack.name
        assert attacked.min() >= 0, attack.name
        assert attacked.max() <= 1, attack.name
        assert torch.equal(attacked, attack.run()), attack.name


def test_passes_are_those_that_the_network_sees(model, seen):
    passes = []

    class Counted(nn.Module):
        training = False

        def forward(self, x):
            passes.append(len(x) * (2 if x.requires_grad else 1))
            return model(x)

    choosing = {"swarm_influence": 4, "swarm_gradient": 2}  # was done with the gradients
    for attack in attacks(Counted().eval(), seen, SWARM, num_pixels=3, seed=0):
        passes.clear()
        attack.run()
        asked = sum(passes) / len(seen) + choosing.get(attack.name, 0)
        # foolbox asks once more whether the attack is needed, and for the answer at its end
        slack = 3 if "foolbox" in attack.name else 0
        assert abs(asked - attack.passes) <= slack, attack.name


def test_numbers_of_an_attack_are_counted_over_its_successes(model, seen):
    flipped = seen.images.clone()
    flipped[:3] = 1 - flipped[:3]
    fooled = model(flipped).argmax(-1) != seen.labels
    assert fooled.any()
    row, _ = measured(model, seen, Attack("flip", 7, lambda: flipped))
    assert row["success"] == pytest.approx(int(fooled.sum()) / 30)
    change = (flipped - seen.images)[fooled].abs().mean()
    assert row["mean_change"] == pytest.approx(255 * float(change), rel=1e-5)
    assert row["changed_pixels"] == 16
    nothing, _ = measured(model, seen, Attack("none", 0, lambda: seen.images))
    assert nothing["success"] == 0
    assert nothing["mean_change"] != nothing["mean_change"]  # there is none


def test_only_successes_join_the_training_with_their_right_labels(model, seen):
    added = successes(model, seen, ParticleSwarm(radius=0.2, particles=20), seed=0)
    assert 0 < len(added["swarm"].labels) <= len(added["pgd"].labels)
    for made in added.values():
        assert (model(made.images).argmax(-1) != made.labels).all()


def test_training_goes_on_in_a_copy(model, images):
    labels = (images.flatten(1)[:, 0] > 0.5).long()
    before = model[1].weight.clone()
    with torch.no_grad():  # as after a test
        trained = trained_on(model, Labeled(images, labels), steps=50, seed=0)
    by_hand = nn.Linear(16, 3)
    by_hand.load_state_dict(model[1].state_dict())
    optimizer = torch.optim.Adam(by_hand.parameters())
    for step in range(50):  # all forty images in every one
        optimizer.param_groups[0]["lr"] = 0.5e-3 * (1 + math.cos(math.pi * step / 50))
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(images.flatten(1)), labels).backward()
        optimizer.step()
    torch.testing.assert_close(trained[1].weight, by_hand.weight, rtol=1e-4, atol=1e-6)
    assert torch.equal(model[1].weight, before)
    assert not trained[1].weight.requires_grad


def test_accuracies_are_of_the_images_they_are_named_for(model, images):
    labels = model(images).argmax(-1)
    labels[::4] = (labels[::4] + 1) % 3
    wrong = Labeled(images[::4], labels[::4])
    found = examined(model, Labeled(images, labels), wrong, SWARM, num_attacked=5, seed=0)
    assert found["clean_accuracy"] == 0.75
    assert found["earlier_accuracy"] == 0
    assert found["pgd_accuracy"] <= 0.75
    assert found["swarm_accuracy"] <= 0.75  # those that were wrong before count
    nothing = accuracy(model, images[:0], labels[:0])
    assert nothing != nothing


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="folder must be that of a run"):
        stored_classifier(tmp_path)
    with pytest.raises(ValueError, match="particles must be at least 1, got 0"):
        AttackStudy(swarm={"particles": 0})
    with pytest.raises(ValueError, match="data of AttackStudy must be an ImageDataModule"):
        AttackStudy().setup(SimpleNamespace(datamodule=None), None, "test")
