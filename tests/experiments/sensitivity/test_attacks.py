"""Attacks, defences and their numbers on networks whose answers are known."""

import pytest
import torch
from torch import nn

from lightning_sobolev.adversarial import ParticleSwarm
from lightning_sobolev.experiments.images.module import PixelClassifier, stored_classifier
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.experiments.sensitivity.adversarial_training import (
    Defence,
    Pictures,
    successes,
)
from lightning_sobolev.experiments.sensitivity.attacks import attacks, measured, right_answers
from lightning_sobolev.experiments.sensitivity.study import (
    AttackStudy,
    influence_numbers,
    influences_of,
    most_vulnerable,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    linear = nn.Linear(16, 3)
    linear.bias.data = -0.5 * linear.weight.data.sum(1)
    return nn.Sequential(nn.Flatten(), linear).requires_grad_(False)


@pytest.fixture
def images(generator):
    return torch.rand(40, 1, 4, 4, generator=generator)


@pytest.fixture
def seen(model, images):
    labels = model(images).argmax(-1)
    labels[::4] = (labels[::4] + 1) % 3
    return right_answers(model, images, labels)


def test_only_what_is_classified_correctly_is_attacked(model, seen):
    assert len(seen.labels) == 30
    assert torch.equal(model(seen.images).argmax(-1), seen.labels)
    assert torch.equal(model(seen.images).topk(2).indices[:, 1], seen.targets)


def test_vulnerable_images_are_those_whose_own_class_is_least_likely(model, seen):
    """Three classes and sixteen pixels: the rank is full, and the influence is 1 / P - 1."""
    own = model(seen.images).softmax(-1).gather(1, seen.labels[:, None])[:, 0]
    found = most_vulnerable(seen, 5)
    least = own.argsort()[:5]
    torch.testing.assert_close(found.images, seen.images[least])
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


@pytest.fixture
def planned(model, seen):
    swarm = ParticleSwarm(radius=0.1, particles=6, iterations=4)
    return {n: (p, a) for n, p, a in attacks(model, seen, swarm, num_pixels=3, seed=0)}


def test_every_attack_stays_in_the_ball_and_repeats_itself(seen, planned):
    assert set(planned) == {
        *("fgsm", "pgd", "pgd_long", "foolbox_pgd", "foolbox_noise"),
        *("swarm", "swarm_influence", "swarm_gradient", "swarm_random"),
    }
    for name, (_, attack) in planned.items():
        attacked = attack()
        assert (attacked - seen.images).abs().max() <= 0.1 + 1e-6, name
        assert attacked.min() >= 0, name
        assert attacked.max() <= 1, name
        assert torch.equal(attacked, attack()), name


def test_passes_are_those_that_the_network_sees(model, seen):
    passes = []

    class Counted(nn.Module):
        training = False

        def forward(self, x):
            passes.append(len(x) * (2 if x.requires_grad else 1))
            return model(x)

    swarm = ParticleSwarm(radius=0.1, particles=6, iterations=4)
    choosing = {"swarm_influence": 4, "swarm_gradient": 2}  # was done with the gradients
    for name, stated, attack in attacks(Counted().eval(), seen, swarm, num_pixels=3, seed=0):
        passes.clear()
        attack()
        asked = sum(passes) / len(seen.labels) + choosing.get(name, 0)
        # foolbox asks once more whether the attack is needed, and for the answer at its end
        assert abs(asked - stated) <= (3 if "foolbox" in name else 0), name


def test_numbers_of_an_attack_are_counted_over_its_successes(model, seen):
    flipped = seen.images.clone()
    flipped[:3] = 1 - flipped[:3]
    fooled = model(flipped).argmax(-1) != seen.labels
    assert fooled.any()
    line, _ = measured(model, seen, "flip", 7, lambda: flipped)
    assert line["success"] == pytest.approx(int(fooled.sum()) / 30)
    change = (flipped - seen.images)[fooled].abs().mean()
    assert line["mean_change"] == pytest.approx(255 * float(change), rel=1e-5)
    assert line["changed_pixels"] == 16
    nothing, _ = measured(model, seen, "none", 0, lambda: seen.images)
    assert nothing["success"] == 0
    assert nothing["mean_change"] != nothing["mean_change"]  # there is none


def test_only_successes_join_the_training_with_their_right_labels(model, seen):
    added = successes(model, seen, ParticleSwarm(radius=0.2, particles=20), seed=0)
    assert 0 < len(added["swarm"].labels) <= len(added["pgd"].labels)
    for pictures in added.values():
        assert (model(pictures.images).argmax(-1) != pictures.labels).all()


def test_a_defence_trains_a_copy(model, images):
    labels = (images.flatten(1)[:, 0] > 0.5).long()
    before = model[1].weight.clone()
    trained = Defence(steps=200, lr=0.05)(model, Pictures(images, labels))
    assert (trained(images).argmax(-1) == labels).float().mean() > 0.9
    assert torch.equal(model[1].weight, before)
    assert not trained[1].weight.requires_grad


def test_pixels_are_standardized_once(images):
    net = nn.Flatten()
    mean, std = torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.2)
    torch.testing.assert_close(
        PixelClassifier(net, mean, std)(images), ((images - 0.3) / 0.2).flatten(1)
    )


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="folder must be that of a finished run of a classifier"):
        stored_classifier(tmp_path)
    with pytest.raises(ValueError, match="particles must be at least 1, got 0"):
        AttackStudy(swarm={"particles": 0})
    with pytest.raises(ValueError, match="AttackStudy needs a ClassificationModule"):
        AttackStudy()(FinishedRun(None, None, tmp_path))
