import copy
import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, ForeignAgent, NatureCNN, load_agent, save_agent
from lightning_sobolev.functional.derivatives import value_and_vjp
from tests.atari._foreign import CleanRLDQN, CleanRLPPO, sb3_model, seeded


@pytest.fixture(scope="module")
def models(tmp_path_factory):
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
    cotangents = torch.randn(2, len(x), 6, generator=generator, dtype=x.dtype)
    return value_and_vjp(function, x, cotangents, engine="tape")


def log_softmax_of(logits):
    return lambda x: torch.log_softmax(logits(x), dim=-1)


def log_probs_of(policy):
    """Answer as stable-baselines3 does, from bytes."""
    return lambda frames: policy.get_distribution(frames).distribution.logits


def agree(network, theirs, stacks, generator, *, tolerance):
    """Compare with a function of bytes: the same values, and 255 times its derivatives."""
    state = generator.get_state()
    frames = stacks.to(next(network.parameters()).dtype)
    expected, slopes = rows_of(theirs, frames, generator)
    generator.set_state(state)
    values, rows = rows_of(log_softmax_of(network), frames / 255, generator)
    assert rows.abs().max() > 1e-3
    assert_close(values, expected, rtol=tolerance, atol=tolerance)
    assert_close(rows, 255 * slopes, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_actor_answers_as_in_stable_baselines3(models, name, stacks, generator):
    model, path = models[name]
    network, _ = load_agent(path)
    agree(network, log_probs_of(model.policy), stacks, generator, tolerance=1e-5)
    # its preprocessing is float32 whatever the model is, so the layers are asked one by one
    policy = model.policy
    parts = policy.pi_features_extractor, policy.mlp_extractor, policy.action_net
    extractor, further, head = (copy.deepcopy(part).double() for part in parts)
    exact = log_softmax_of(lambda x: head(further.forward_actor(extractor(x / 255))))
    agree(network.double(), exact, stacks, generator, tolerance=1e-10)


@pytest.mark.parametrize(("temperature", "tolerance"), [(None, 1e-4), (1.0, 1e-5)])
def test_q_values_become_a_softmax_at_the_temperature(
    models, stacks, generator, temperature, tolerance
):
    model, path = models["dqn"]
    network, card = load_agent(ForeignAgent(path, temperature=temperature))
    stated = temperature or 0.01
    assert card["source"]["temperature"] == stated
    theirs = log_softmax_of(lambda frames: model.policy.q_net(frames) / stated)
    agree(network, theirs, stacks, generator, tolerance=tolerance)
    q_net = copy.deepcopy(model.policy.q_net).double()
    x = (stacks / 255).double()
    exact = q_net.q_net(q_net.features_extractor(x)) / stated
    assert_close(network.double()(x), exact, rtol=1e-5, atol=1e-5)
    greedy, _ = model.predict(stacks.numpy(), deterministic=True)
    np.testing.assert_array_equal(network(x).argmax(1), greedy)


@pytest.mark.parametrize(
    ("name", "policy", "scale"),
    [
        ("ppo", {"share_features_extractor": False}, 1.0),
        ("a2c", {"net_arch": {"pi": [], "vf": [16]}}, 1.0),  # a critic with further layers
        ("a2c", {"normalize_images": False}, 255.0),
    ],
)
def test_other_critics_and_scales(tmp_path, stacks, generator, name, policy, scale):
    model = sb3_model(name, steps=8, policy_kwargs=policy)
    model.save(tmp_path / "own.zip")
    network, card = load_agent(ForeignAgent(tmp_path / "own.zip", input_scale=scale))
    assert (card["input_scale"], card["source"]["input_scale"]) == (1.0, scale)
    agree(network, log_probs_of(model.policy), stacks, generator, tolerance=1e-4)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_further_layers_of_the_policy_are_refused(tmp_path, name):
    sb3_model(name, policy_kwargs={"net_arch": [16]}).save(tmp_path / "deep.zip")
    with pytest.raises(ValueError, match=r"must be a Nature network and nothing more.*further"):
        load_agent(tmp_path / "deep.zip")


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
    theirs = log_softmax_of(original)
    agree(network, theirs, stacks, generator, tolerance=1e-5)
    original.double()
    agree(network.double(), theirs, stacks, generator, tolerance=1e-10)


@pytest.mark.parametrize(("name", "temperature"), [("ppo", None), ("dqn", 0.1)])
def test_foreign_agent_stored_anew_keeps_its_card(models, tmp_path, stacks, name, temperature):
    _, path = models[name]
    settings, own = AtariSettings("pong", sticky=True), tmp_path / "own.safetensors"
    network, card = load_agent(ForeignAgent(path, settings, temperature=temperature))
    assert card["source"]["file"] == str(path)
    assert card["source"]["layout"].startswith("stable-baselines3 ")
    assert card["source"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["num_actions"] == network.num_actions == 6
    assert not network.training
    save_agent(own, network, settings, about=card)
    for agent in (own, ForeignAgent(own, num_actions=6)):
        again, kept = load_agent(agent)
        assert kept["source"] == card["source"]
        assert kept["environment"]["sticky"]
        assert_close(again(stacks / 255), network(stacks / 255), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"are said by its card, got 255\.0 and None"):
        load_agent(ForeignAgent(own, input_scale=255.0))
    with pytest.raises(ValueError, match=r"must have num_actions=4 outputs, got 6"):
        load_agent(ForeignAgent(own, num_actions=4))


def stored(tmp_path, weights):
    torch.save(weights, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor.bias": torch.full((6,), torch.nan)}, "be finite"),
        ({"actor.bias": torch.ones(6, dtype=torch.complex64)}, r"real numbers, got torch\.complex"),
        ({"actor.bias": torch.ones(6).to_sparse()}, r"dense array .* got .* torch\.sparse_coo"),
        ({"actor.bias": torch.ones(6, device="meta")}, r"dense array .* on meta"),
        ({"actor.bias": torch.ones(1).expand(6)}, "hold all of its 6 numbers, got 4 bytes"),
        ({"network.7.weight": torch.ones(256, 3136)}, r"shape \[512, 3136\], got \[256, 3136\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, changes, message):
    path = stored(tmp_path, {**seeded(CleanRLPPO).state_dict(), **changes})
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} in .*a\.pt must .*{message}"):
        load_agent(path)


def test_other_networks_are_refused(tmp_path):
    path = stored(tmp_path, torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match=r"must hold a Nature network .* got tensors \['weight'"):
        load_agent(path)
    path = stored(tmp_path, {**seeded(CleanRLDQN).state_dict(), "atoms": torch.ones(51)})
    with pytest.raises(ValueError, match=r"nothing more, .* got further tensors \['atoms'\]"):
        load_agent(path)


@pytest.mark.parametrize(
    "wanted", [{"num_actions": 6}, {"environment": AtariSettings("pong")}], ids=str
)
def test_another_number_of_actions_is_refused(tmp_path, wanted):
    path = stored(tmp_path, seeded(CleanRLDQN, num_actions=4).state_dict())
    assert load_agent(path)[1]["num_actions"] == 4
    with pytest.raises(ValueError, match=r"must have num_actions=6 outputs, got 4"):
        load_agent(ForeignAgent(path, **wanted))


def test_own_names_without_a_card_are_a_state_dict(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(NatureCNN(6).state_dict(), path)
    assert load_agent(ForeignAgent(path))[1]["source"]["layout"] == "lightning_sobolev"
    with pytest.raises(ValueError, match="must be a card"):
        load_agent(path)


def test_what_was_said_of_a_file_is_compared(tmp_path):
    path = stored(tmp_path, seeded(CleanRLPPO).state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_agent(ForeignAgent(path, sha256=digest.upper()))[1]["source"]["sha256"] == digest
    with pytest.raises(ValueError, match=f"must have the sha256 0123, got {digest}"):
        load_agent(ForeignAgent(path, sha256="0123"))
    with pytest.raises(ValueError, match=r"temperature must be None .* logits .*, got 1\.0"):
        load_agent(ForeignAgent(path, temperature=1.0))
    with pytest.raises(ValueError, match=r"source must be an existing file"):
        load_agent(ForeignAgent(tmp_path / "none.pt"))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_must_be_positive(value):
    for name in ("input_scale", "temperature"):
        with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
            ForeignAgent("a.zip", **{name: value})
