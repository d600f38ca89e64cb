import contextlib
import hashlib
import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    Environments,
    agent_names,
    load_agent,
    log_probabilities,
    save_agent,
)


@pytest.fixture
def stored(tmp_path, small_teacher):
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_teacher(), AtariSettings("pong"), about={"note": "untrained"})
    return path


@pytest.mark.parametrize("name", ["breakout", "pong", "space_invaders"])
def test_the_packaged_agents_have_cards_that_say_what_a_user_needs(name):
    assert name in agent_names()
    network, card = load_agent(name)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert not network.training
    settings = AtariSettings(**card["environment"])
    environments = Environments(replace(settings, num_envs=1), seed=0, num_threads=1)
    assert settings.game == name
    assert tuple(card["actions"]) == environments.action_meanings
    log_probs = log_probabilities(network, environments.reset())
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)
    weights = files("lightning_sobolev.atari") / "agents" / "weights" / f"{name}.safetensors"
    assert len(weights.read_bytes()) < 4 * 2**20
    for way in ("sampled", "greedy"):
        assert card["returns"][way]["num_episodes"] == 30
        assert card["returns"][way]["standard_error"] > 0
    assert card["half_precision"]["largest_log_prob_error"] <= 1e-2
    assert card["trained"]
    if name == "pong":
        merged = [{card["actions"][i] for i in group} for group in card["same_actions"]]
        assert merged == [{"NOOP", "FIRE"}, {"RIGHT", "RIGHTFIRE"}, {"LEFT", "LEFTFIRE"}]


@pytest.mark.parametrize("half", [False, True])
def test_what_is_stored_is_read_back(tmp_path, small_teacher, half):
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_teacher(), AtariSettings("pong"), half=half, about={"note": "untrained"})
    network, card = load_agent(path)
    for name, weight in small_teacher().state_dict().items():
        is_whole = name.startswith("body.0.") or not half
        expected = weight if is_whole else weight.half().float()
        assert_close(network.state_dict()[name], expected, rtol=0, atol=0)
    assert card["note"] == "untrained"
    assert card["num_actions"] == 6
    # whoever reads the card may read the weights
    assert path.stat().st_mode == path.with_suffix(".json").stat().st_mode


def test_unknown_agent_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"agent must be one of .*pong.* got 'pongg'"):
        load_agent("pongg")
    with pytest.raises(ValueError, match=r"or a \.safetensors file, got .*none\.safetensors"):
        load_agent(tmp_path / "none.safetensors")


def test_changed_weights_and_a_missing_card_are_refused(stored):
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(ValueError, match=r"agent\.safetensors must have the sha256 of its card"):
        load_agent(stored)
    stored.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"agent\.json must be a card"):
        load_agent(stored)


def rewrite(stored, **changes):
    """Write a card by hand: None leaves a key out, and the checksum of the card goes."""
    path = stored.with_suffix(".json")
    card = {**json.loads(path.read_text()), "card_sha256": None, **changes}
    path.write_text(json.dumps({key: value for key, value in card.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": None}, r"must be a card with .*, it lacks \['sha256'\]"),
        ({"network": "os.system"}, r"network .* must be one of .*, got 'os\.system'"),
        ({"input_scale": 0}, "input_scale .* must be a positive number, got 0"),
        ({"input_scale": float("nan")}, "input_scale .* must be a positive number, got nan"),
        ({"input_scale": "1"}, "input_scale .* must be a positive number, got '1'"),
        ({"environment": {"game": "pong", "turbo": True}}, "environment .* AtariSettings .*turbo"),
        ({"environment": {"img_height": 10**6}}, r"body\.5\.weight .* must have shape .* got"),
        ({"environment": {"img_height": 10**30}}, "must be a network for 6 actions and stacks"),
        ({"num_actions": 10**10}, r"head\.weight .* must have shape \[10000000000, 256\]"),
        ({"num_actions": "six"}, "must be a network for six actions"),
        ({"network": "NatureCNN"}, r"must hold the tensors \['body\.4"),
    ],
)
def test_a_card_that_cannot_be_true_is_refused(stored, changes, message):
    rewrite(stored, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_agent(stored)
    assert stored.stem in str(caught.value)


def test_a_changed_card_is_noticed_wherever_it_is(stored):
    path = stored.with_suffix(".json")
    whole, card = path.read_bytes(), load_agent(stored)[1]
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):
            found = load_agent(stored)[1]
            # another word for "card_sha256" is a further remark
            assert {key: found[key] for key in card} == card


@pytest.mark.parametrize("checked", [False, True])
def test_the_scale_in_a_card_is_obeyed(stored, small_teacher, generator, checked):
    rewrite(stored, input_scale=255.0)
    if checked:  # by hand, as the docs describe it
        path = stored.with_suffix(".json")
        card = json.loads(path.read_text())
        digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**card, "card_sha256": digest}))
    network, read = load_agent(stored)
    assert read["input_scale"] == 1.0
    x = torch.rand(2, 4, 84, 84, generator=generator)
    assert_close(network(x), small_teacher()(255 * x), rtol=1e-4, atol=1e-3)


def test_only_known_networks_are_stored(tmp_path, small_teacher):
    with pytest.raises(ValueError, match=r"network be one of NatureCNN, SmallCNN, got .* Linear"):
        save_agent(tmp_path / "a.safetensors", torch.nn.Linear(1, 1), AtariSettings("pong"))
    with pytest.raises(ValueError, match=r"path must end in \.safetensors"):
        save_agent(tmp_path / "a.pt", small_teacher(), AtariSettings("pong"))
