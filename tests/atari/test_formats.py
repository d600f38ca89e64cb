import copy
import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    ForeignAgent,
    load_agent,
    log_probabilities,
    play,
    save_agent,
)
from lightning_sobolev.functional.derivatives import value_and_vjp
from tests.atari._foreign import CleanRLDQN, CleanRLPPO, Game, sb3_model, seeded


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of stable-baselines3 after a few steps of training, and where they are saved."""
    folder = tmp_path_factory.mktemp("sb3")
    stored = {}
    for name in ("ppo", "a2c", "dqn"):
        model, path = sb3_model(name, steps=16), folder / f"{name}.zip"
        model.save(path)
        stored[name] = model, path
    return stored


@pytest.fixture
def stacks(generator):
    return torch.randint(0, 256, (3, 4, 84, 84), generator=generator, dtype=torch.uint8)


def rows_of(function, x, generator):
    """Return values and projected input gradients along random cotangents."""
    cotangents = torch.randn(2, len(x), 6, generator=generator, dtype=x.dtype)
    return value_and_vjp(function, x, cotangents, engine="tape")


def log_probs_of(policy):
    """Answer as stable-baselines3 does, from bytes."""

    def function(pictures):
        return policy.get_distribution(pictures).distribution.logits

    return function


def agree(network, theirs, stacks, generator, *, tolerance):
    """Compare with a function of bytes: the same values, and 255 times its derivatives."""
    state = generator.get_state()
    pictures = stacks.to(next(network.parameters()).dtype)
    expected, slopes = rows_of(theirs, pictures, generator)
    generator.set_state(state)
    values, rows = rows_of(
        lambda x: torch.log_softmax(network(x), dim=-1), pictures / 255, generator
    )
    assert rows.abs().max() > 1e-3
    assert_close(values, expected, rtol=tolerance, atol=tolerance)
    assert_close(rows, 255 * slopes, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_actor_answers_as_in_stable_baselines3(models, name, stacks, generator):
    model, path = models[name]
    network, _ = load_agent(path)
    agree(network, log_probs_of(model.policy), stacks, generator, tolerance=1e-5)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_actor_in_float64_is_the_same_function(models, name, stacks, generator):
    model, path = models[name]
    # its preprocessing is float32 whatever the model is, so the layers are asked one by one
    policy = model.policy
    parts = policy.pi_features_extractor, policy.mlp_extractor, policy.action_net
    extractor, further, head = (copy.deepcopy(part).double() for part in parts)

    def theirs(pictures):
        return torch.log_softmax(head(further.forward_actor(extractor(pictures / 255))), dim=-1)

    agree(load_agent(path)[0].double(), theirs, stacks, generator, tolerance=1e-10)


def test_q_values_are_those_of_stable_baselines3(models, stacks, generator):
    model, path = models["dqn"]
    network, card = load_agent(ForeignAgent(path, temperature=1.0))
    expected, slopes = rows_of(
        lambda pictures: model.policy.q_net(pictures), stacks.float(), copy_of(generator)
    )
    values, rows = rows_of(network, stacks / 255, generator)
    assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert_close(rows, 255 * slopes, rtol=1e-5, atol=1e-5)
    assert card["source"]["temperature"] == 1.0
    q_net = copy.deepcopy(model.policy.q_net).double()
    x = (stacks / 255).double()
    exact = q_net.q_net(q_net.features_extractor(x))
    assert_close(network.double()(x), exact, rtol=1e-10, atol=1e-10)


def copy_of(generator):
    return torch.Generator().set_state(generator.get_state())


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_q_values_become_a_softmax_at_the_temperature(models, stacks, generator, temperature):
    model, path = models["dqn"]
    network, card = load_agent(ForeignAgent(path, temperature=temperature))
    stated = 0.01 if temperature is None else temperature
    assert card["source"]["temperature"] == stated

    def theirs(pictures):
        return torch.log_softmax(model.policy.q_net(pictures) / stated, dim=-1)

    agree(network, theirs, stacks, generator, tolerance=1e-4 if temperature is None else 1e-5)


def test_greedy_action_is_the_one_that_dqn_takes(models, stacks):
    model, path = models["dqn"]
    expected, _ = model.predict(stacks.numpy(), deterministic=True)
    chosen = log_probabilities(load_agent(path)[0], stacks.numpy()).argmax(1)
    np.testing.assert_array_equal(chosen, expected)


def test_actor_with_an_extractor_of_its_own(tmp_path, stacks, generator):
    model = sb3_model("ppo", steps=8, policy_kwargs={"share_features_extractor": False})
    model.save(tmp_path / "own.zip")
    network, _ = load_agent(tmp_path / "own.zip")
    agree(network, log_probs_of(model.policy), stacks, generator, tolerance=1e-5)


def test_critic_may_have_further_layers(tmp_path, stacks, generator):
    model = sb3_model("a2c", policy_kwargs={"net_arch": {"pi": [], "vf": [16]}})
    model.save(tmp_path / "critic.zip")
    network, _ = load_agent(tmp_path / "critic.zip")
    agree(network, log_probs_of(model.policy), stacks, generator, tolerance=1e-5)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_further_layers_of_the_policy_are_refused(tmp_path, name):
    sb3_model(name, policy_kwargs={"net_arch": [16]}).save(tmp_path / "deep.zip")
    with pytest.raises(ValueError, match=r"must be a Nature network and nothing more.*further"):
        load_agent(tmp_path / "deep.zip")


def test_trained_on_bytes_is_brought_to_unit_scale(tmp_path, stacks, generator):
    model = sb3_model("a2c", policy_kwargs={"normalize_images": False})
    model.save(tmp_path / "bytes.zip")
    network, card = load_agent(ForeignAgent(tmp_path / "bytes.zip", input_scale=255.0))
    assert card["input_scale"] == 1.0
    assert card["source"]["input_scale"] == 255.0
    agree(network, log_probs_of(model.policy), stacks, generator, tolerance=1e-4)


def test_one_extractor_without_copies(models, tmp_path, stacks):
    _, path = models["a2c"]
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    kept = {k: v for k, v in weights.items() if not k.startswith(("pi_", "vf_"))}
    assert len(kept) < len(weights)
    torch.save(kept, tmp_path / "policy.pth")
    network, card = load_agent(tmp_path / "policy.pth")
    assert card["source"]["layout"] == "stable-baselines3 PPO or A2C, one extractor"
    assert_close(network(stacks / 255), load_agent(path)[0](stacks / 255), rtol=0, atol=0)


@pytest.mark.parametrize("ending", ["cleanrl_model", "safetensors"])
@pytest.mark.parametrize("kind", [CleanRLPPO, CleanRLDQN])
def test_cleanrl_answers_as_its_own_network(tmp_path, kind, ending, stacks, generator):
    original, path = seeded(kind), tmp_path / f"agent.{ending}"
    save = save_file if ending == "safetensors" else torch.save
    save(original.state_dict(), path)
    is_q = kind is CleanRLDQN
    network, _ = load_agent(ForeignAgent(path, temperature=1.0 if is_q else None))

    def theirs(pictures):
        return torch.log_softmax(original(pictures), dim=-1)

    agree(network, theirs, stacks, generator, tolerance=1e-5)
    original.double()
    agree(network.double(), theirs, stacks, generator, tolerance=1e-10)


def test_card_says_where_the_policy_came_from(models):
    _, path = models["ppo"]
    settings = AtariSettings("pong", sticky=True)
    network, card = load_agent(ForeignAgent(path, settings))
    assert card["environment"]["sticky"] is True
    assert card["source"]["file"] == str(path)
    assert card["source"]["layout"] == "stable-baselines3 PPO or A2C"
    assert len(card["source"]["sha256"]) == 64
    assert card["num_actions"] == network.num_actions == 6
    assert not network.training


def test_foreign_agent_stored_anew_keeps_its_card(models, tmp_path, stacks):
    _, path = models["dqn"]
    settings = AtariSettings("pong")
    network, card = load_agent(ForeignAgent(path, settings, temperature=0.1))
    save_agent(tmp_path / "own.safetensors", network, settings, about=card)
    again, kept = load_agent(tmp_path / "own.safetensors")
    assert kept["source"] == card["source"]
    assert_close(again(stacks / 255), network(stacks / 255), rtol=0, atol=0)
    described, _ = load_agent(ForeignAgent(tmp_path / "own.safetensors", num_actions=6))
    assert_close(described(stacks / 255), network(stacks / 255), rtol=0, atol=0)


@pytest.mark.atari_long
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_policy_trained_in_the_real_game(tmp_path, name):
    settings = AtariSettings("pong", num_envs=1)
    options = {"ppo": {"n_steps": 128, "batch_size": 64}, "dqn": {"buffer_size": 3000}}[name]
    game = Game(settings)
    model = sb3_model(name, steps=3000, env=game, **options)
    model.save(tmp_path / "pong.zip")
    temperature = 1.0 if name == "dqn" else None
    agent = ForeignAgent(tmp_path / "pong.zip", settings, 6, temperature=temperature)
    network, _ = load_agent(agent)
    observation, _ = game.reset()
    seen = []
    for step in range(300):
        seen.append(observation.copy())
        observation, *_ = game.step(step % 6)
    stacks = torch.from_numpy(np.stack(seen[::30]))
    function = log_probs_of(model.policy) if name == "ppo" else model.policy.q_net
    generator = torch.Generator().manual_seed(0)
    expected, slopes = rows_of(function, stacks.float(), copy_of(generator))
    answer = (lambda x: torch.log_softmax(network(x), 1)) if name == "ppo" else network
    values, rows = rows_of(answer, stacks / 255, generator)
    assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert_close(rows, 255 * slopes, rtol=1e-5, atol=1e-5)
    short = AtariSettings("pong", num_envs=1, max_num_frames_per_episode=2000)
    assert -21 <= play(network, short, num_episodes=1, progress=False).mean <= 21
