import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    agents,
    load_agent,
    log_probabilities,
    make_environments,
    save_agent,
)


@pytest.fixture
def stored(tmp_path, small_teacher):
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_teacher(), AtariSettings("pong"), about={"note": "untrained"})
    return path


def test_pong_comes_with_the_package():
    network, card = load_agent("pong")
    assert "pong" in agents()
    assert (files("lightning_sobolev.atari") / "zoo" / "pong.json").is_file()
    stacks = make_environments(AtariSettings(**card["environment"]), seed=0).reset()
    log_probs = log_probabilities(network, stacks)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert not network.training


def test_there_is_an_agent_for_every_game():
    assert agents() == ("breakout", "pong", "space_invaders")


def test_actions_of_pong_that_do_the_same_are_named():
    _, card = load_agent("pong")
    merged = {frozenset(card["actions"][i] for i in group) for group in card["same_actions"]}
    assert merged == {
        frozenset({"NOOP", "FIRE"}),
        frozenset({"RIGHT", "RIGHTFIRE"}),
        frozenset({"LEFT", "LEFTFIRE"}),
    }


@pytest.mark.parametrize("name", agents())
def test_a_card_says_what_a_user_needs(name):
    _, card = load_agent(name)
    settings = AtariSettings(**card["environment"])
    assert settings.game == name
    assert tuple(card["actions"]) == make_environments(settings, seed=0).action_meanings
    weights = files("lightning_sobolev.atari") / "zoo" / f"{name}.safetensors"
    assert len(weights.read_bytes()) < 4 * 2**20
    for way in ("sampled", "greedy"):
        assert card["returns"][way]["num_episodes"] == 30
        assert card["returns"][way]["standard_error"] > 0
    assert card["half_precision"]["largest_log_prob_error"] <= 1e-2
    assert card["trained"]


def test_whoever_reads_the_card_may_read_the_weights(stored):
    assert stored.stat().st_mode == stored.with_suffix(".json").stat().st_mode


def test_what_is_stored_is_read_back(stored, small_teacher):
    network, card = load_agent(stored)
    for name, weight in small_teacher().state_dict().items():
        assert_close(network.state_dict()[name], weight, rtol=0, atol=0)
    assert card["note"] == "untrained"
    assert card["num_actions"] == 6


def test_half_precision_keeps_the_first_layer(tmp_path, small_teacher):
    path, teacher = tmp_path / "half.safetensors", small_teacher()
    save_agent(path, teacher, AtariSettings("pong"), half=True)
    weights = load_agent(path)[0].state_dict()
    for name, weight in teacher.state_dict().items():
        expected = weight if name.startswith("body.0.") else weight.half().float()
        assert_close(weights[name], expected, rtol=0, atol=0)


def test_unknown_agent_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"agent must be one of .*pong.* got 'pongg'"):
        load_agent("pongg")
    with pytest.raises(ValueError, match=r"or a \.safetensors file, got .*none\.safetensors"):
        load_agent(tmp_path / "none.safetensors")


def test_changed_weights_are_refused(stored):
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(ValueError, match=r"agent\.safetensors must have the sha256 of its card"):
        load_agent(stored)


def test_incomplete_card_is_refused(stored):
    path = stored.with_suffix(".json")
    card = json.loads(path.read_text())
    del card["sha256"]
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"must be a card with .*, it lacks \['sha256'\]"):
        load_agent(stored)
    path.write_text(json.dumps({**card, "sha256": "", "network": "os.system"}))
    with pytest.raises(ValueError, match=r"network must be one of .*, got 'os\.system'"):
        load_agent(stored)
    path.unlink()
    with pytest.raises(ValueError, match="must be a card"):
        load_agent(stored)


def test_only_known_networks_are_stored(tmp_path, small_teacher):
    with pytest.raises(ValueError, match=r"network be one of NatureCNN, SmallCNN, got .* Linear"):
        save_agent(tmp_path / "a.safetensors", torch.nn.Linear(1, 1), AtariSettings("pong"))
    with pytest.raises(ValueError, match=r"path must end in \.safetensors"):
        save_agent(tmp_path / "a.pt", small_teacher(), AtariSettings("pong"))
