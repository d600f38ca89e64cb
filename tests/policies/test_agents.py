import json
import pickle
import shutil
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.testing import assert_close

from lightning_sobolev.policies import (
    EnvSettings,
    ForeignPolicy,
    Head,
    load_policy,
    play_policy,
    policy_names,
    save_policy,
)
from tests.policies._policies import observations, sb3_model, small_policy

CARTPOLE, PENDULUM = EnvSettings("CartPole-v1"), EnvSettings("Pendulum-v1")
SQUASHED = EnvSettings("Pendulum-v1", squash=True)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a function that trains nothing and stores a model of stable-baselines3."""
    folder, made = tmp_path_factory.mktemp("zips"), {}

    def store(*what, **options):
        key = str((what, options))
        if key not in made:
            model, path = sb3_model(*what, **options), folder / f"{len(made)}.zip"
            model.save(path)
            made[key] = model, path
        return made[key]

    return store


@pytest.mark.parametrize("kind", ["ppo", "a2c"])
def test_a_choices_outputs_are_those_of_the_library(kind, stored):
    model, path = stored(kind)
    network, card = load_policy(path, CARTPOLE)
    x = torch.from_numpy(observations(9, 4))
    theirs = model.policy.get_distribution(x).distribution.logits
    assert_close(torch.log_softmax(network(x), -1), theirs)
    assert card["layout"] == "stable-baselines3 PPO or A2C"


def test_a_gaussians_outputs_are_those_of_the_library(stored):
    model, path = stored("ppo", "Pendulum-v1")
    network, _ = load_policy(path, PENDULUM)
    x = torch.from_numpy(observations(9, 3))
    theirs = model.policy.get_distribution(x).distribution
    mean, log_std = network(x).chunk(2, -1)
    assert_close(mean, theirs.mean)
    assert_close(log_std.exp(), theirs.stddev)


def test_a_squashed_gaussians_outputs_and_actions_are_those_of_the_library(stored):
    model, path = stored("sac", "Pendulum-v1")
    network, card = load_policy(path, SQUASHED)
    x = torch.from_numpy(observations(9, 3))
    mean, log_std, _ = model.policy.actor.get_action_dist_params(x)
    assert_close(network(x), torch.cat([mean, log_std], -1))
    assert card["squash"] is True
    head = Head.for_env(SQUASHED)
    greedy = head.actions(head.choose(network(x).detach().numpy(), None))
    np.testing.assert_allclose(greedy, model.predict(x.numpy(), deterministic=True)[0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"env.settings.squash must be true for .*zip, got False"):
        load_policy(path, PENDULUM)


def test_values_become_a_policy_at_a_temperature(stored):
    model, path = stored("dqn")
    x = torch.from_numpy(observations(9, 4))
    values = model.policy.q_net(x)
    for temperature in (None, 2.0):
        network, card = load_policy(ForeignPolicy(path, temperature=temperature), CARTPOLE)
        assert_close(network(x), values / (temperature or 0.01), rtol=1e-4, atol=1e-4)
        assert card["temperature"] == (temperature or 0.01)
    with pytest.raises(ValueError, match=r"temperature must be None for .*no Q-values"):
        load_policy(ForeignPolicy(stored("ppo")[1], temperature=1.0), CARTPOLE)


def test_the_activation_is_the_one_that_the_zip_says(stored):
    kwargs = {"net_arch": [8], "activation_fn": torch.nn.ReLU}
    model, path = stored("ppo", policy_kwargs=kwargs)
    network, _ = load_policy(path, CARTPOLE)
    x = torch.from_numpy(observations(9, 4))
    theirs = model.policy.get_distribution(x).distribution.logits
    assert_close(torch.log_softmax(network(x), -1), theirs)
    with pytest.raises(ValueError, match=r"activation must be that of .*relu, got tanh"):
        load_policy(ForeignPolicy(path, activation="tanh"), CARTPOLE)
    odd = stored("ppo", policy_kwargs={"activation_fn": torch.nn.Hardtanh})[1]
    with pytest.raises(ValueError, match=r"must have an activation of tanh, .*Hardtanh"):
        load_policy(odd, CARTPOLE)


def test_a_normalizers_numbers_stand_in_front_of_the_policy(stored):
    _, path = stored("ppo")
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 1.0, 0.1]
    statistics = {"observation_mean": mean, "observation_std": std, "observation_clip": 1.5}
    network, _ = load_policy(ForeignPolicy(path, **statistics), CARTPOLE)
    bare, _ = load_policy(path, CARTPOLE)
    x = torch.from_numpy(observations(9, 4))
    normalized = ((x - torch.tensor(mean)) / torch.tensor(std)).clamp(-1.5, 1.5)
    assert_close(network(x), bare(normalized))
    assert_close(network.eval()(x).shape, torch.Size([9, 2]))


def test_a_file_of_the_hub_is_named_by_a_commit(stored, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--people--pole" / "snapshots" / commit / "ppo.zip"
    place.parent.mkdir(parents=True)
    shutil.copy(stored("ppo")[1], place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    network, card = load_policy(f"hf://people/pole/ppo.zip@{commit}", CARTPOLE)
    x = torch.from_numpy(observations(3, 4))
    assert_close(network(x), load_policy(place, CARTPOLE)[0](x))
    assert card["source"].startswith("hf://people")
    with pytest.raises(ValueError, match="must be a commit"):
        ForeignPolicy("hf://people/pole/ppo.zip@main")


def with_member(path, target, name, content):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return target


def test_nothing_is_unpickled(stored, tmp_path):
    path = stored("ppo")[1]
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    data["policy_class"][":serialized:"] = "bm90IGEgcGlja2xl"  # whoever loads this fails
    changed = with_member(path, tmp_path / "x.zip", "data", json.dumps(data))
    x = torch.from_numpy(observations(2, 4))
    assert_close(load_policy(changed, CARTPOLE)[0](x), load_policy(path, CARTPOLE)[0](x))
    with pytest.raises(ValueError, match=r"data in .* must be JSON"):
        load_policy(with_member(path, tmp_path / "y.zip", "data", "{"), CARTPOLE)


def test_what_is_not_read_is_named(stored, tmp_path):
    noisy = stored("ppo", "Pendulum-v1", use_sde=True)[1]
    with pytest.raises(ValueError, match="must be trained with use_sde=False"):
        load_policy(noisy, PENDULUM)
    with pytest.raises(ValueError, match=r"over the 3 observations of Pendulum-v1, got 4"):
        load_policy(stored("ppo")[1], PENDULUM)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"must hold an MlpPolicy of stable-baselines3"):
        load_policy(tmp_path / "x.pt", CARTPOLE)
    weights = {"mlp_extractor.policy_net.0.weight": torch.zeros(8, 4)}
    torch.save({**weights, "action_net.weight": torch.zeros(2, 8)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"must hold the tensors .*policy_net.0.bias"):
        load_policy(tmp_path / "x.pt", CARTPOLE)
    with pytest.raises(ValueError, match=r"policy must be one that comes .*CartPole-v1.*'nobody'"):
        load_policy("nobody", CARTPOLE)
    with pytest.raises(ValueError, match="must have the sha256 00, got"):
        load_policy(ForeignPolicy(stored("ppo")[1], sha256="00"), CARTPOLE)


@pytest.mark.parametrize("deviations", ["none", "constant", "clamped"])
def test_a_stored_policy_is_the_same_again(deviations, tmp_path):
    policy = small_policy(3, 2, deviations=deviations, activation="elu", clip=2.0)
    card = save_policy(tmp_path / "a.safetensors", policy, PENDULUM, about={"by": "me"})
    loaded, found = load_policy(tmp_path / "a.safetensors", PENDULUM)
    assert found == card
    assert found["by"] == "me"
    x = torch.from_numpy(observations(5, 3))
    assert_close(loaded(x), policy(x), rtol=0, atol=0)
    weights = load_file(tmp_path / "a.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="must have the sha256 of its card"):
        load_policy(tmp_path / "a.safetensors", PENDULUM)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a card with network, .*lacks"):
        load_policy(tmp_path / "a.safetensors", PENDULUM)


def test_packaged_policies_play_as_their_cards_say():
    assert set(policy_names()) == {"Acrobot-v1", "CartPole-v1", "LunarLander-v3", "Pendulum-v1"}
    for name in ("Acrobot-v1", "CartPole-v1", "Pendulum-v1"):
        settings = EnvSettings(name)
        network, card = load_policy(name, settings)
        assert card["environment"]["id"] == name
        said = card["return_of_100_episodes"]["greedy"]
        found = play_policy(network, settings, num_episodes=4, greedy=True, seed=7, progress=False)
        # of an episode, not of the mean
        spread = said["standard_error"] * 10 + 1
        assert abs(found.mean - said["mean"]) < 4 * spread / 2


def test_a_packaged_policy_of_box2d_loads_where_it_is_installed():
    pytest.importorskip("Box2D")
    settings = EnvSettings("LunarLander-v3", num_envs=2)
    network, card = load_policy("LunarLander-v3", settings)
    assert card["return_of_100_episodes"]["greedy"]["mean"] > 200
    assert network(torch.zeros(1, 8)).shape == (1, 4)


def test_a_file_beside_no_card_is_the_librarys(stored, tmp_path):
    model, path = stored("ppo")
    weights = {name: one.clone() for name, one in model.policy.state_dict().items()}
    save_file(weights, tmp_path / "p.safetensors")
    x = torch.from_numpy(observations(3, 4))
    assert_close(
        load_policy(tmp_path / "p.safetensors", CARTPOLE)[0](x), load_policy(path, CARTPOLE)[0](x)
    )
    shutil.copy(path, tmp_path / "q.zip")
    (tmp_path / "q.zip").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated, damaged or of another kind"):
        load_policy(tmp_path / "q.zip", CARTPOLE)


def test_layers_of_other_kinds_are_refused(tmp_path):
    linear = {"0": (8, 4), "1": (8,), "3": (8, 8)}  # a norm in the middle
    weights = {f"mlp_extractor.policy_net.{n}.weight": torch.ones(s) for n, s in linear.items()}
    weights |= {f"mlp_extractor.policy_net.{n}.bias": torch.ones(8) for n in linear}
    weights |= {"action_net.weight": torch.ones(2, 8), "action_net.bias": torch.ones(2)}
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"must be linear layers .*policy_net.1.weight"):
        load_policy(tmp_path / "x.pt", CARTPOLE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": 3}, "source must be a file or hf://..., got 3"),
        ({"temperature": "hot"}, "temperature must be a positive number, got 'hot'"),
        ({"observation_clip": True}, "observation_clip must be a positive number, got True"),
        (
            {"observation_mean": [0.0]},
            "observation_mean and observation_std must be given together",
        ),
        (
            {"observation_mean": 3, "observation_std": [1]},
            "observation_mean must be a list .* got 3",
        ),
        (
            {"observation_mean": [0], "observation_std": "ab"},
            "observation_std must be a list of fin",
        ),
        ({"observation_mean": [np.nan], "observation_std": [1]}, "observation_mean must be a list"),
        (
            {"observation_mean": [0], "observation_std": [0]},
            "observation_std must be positive, got",
        ),
    ],
)
def test_a_description_is_refused_before_a_file_is_read(given, message):
    with pytest.raises(ValueError, match=message):
        ForeignPolicy(**{"source": "nowhere.zip", **given})


def test_a_normalizer_of_another_length_is_named(stored):
    two = {"observation_mean": [0, 0], "observation_std": [1, 1]}
    with pytest.raises(ValueError, match=r"observation_mean must be 4 numbers, .* got 2"):
        load_policy(ForeignPolicy(stored("ppo")[1], **two), CARTPOLE)


def test_a_zip_that_was_trained_on_normalized_observations_says_so(stored, tmp_path, caplog):
    load_policy(stored("ppo")[1], CARTPOLE)
    assert not caplog.messages
    model = PPO("MlpPolicy", VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])))
    model.n_steps = 8
    model._setup_learn(8)
    model.save(tmp_path / "normalized.zip")
    load_policy(tmp_path / "normalized.zip", CARTPOLE)
    (line,) = caplog.messages
    assert line.startswith("observation_mean is None for ")
    four = {"observation_mean": [0] * 4, "observation_std": [1] * 4}
    load_policy(ForeignPolicy(tmp_path / "normalized.zip", **four), CARTPOLE)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff"])
def test_text_of_a_zip_that_is_no_json_is_named(content, stored, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(stored("ppo")[1]) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("policy.pth", old.read("policy.pth"))
        new.writestr("data", content)
    with pytest.raises(ValueError, match=r"data in .*a.zip must be JSON"):
        load_policy(path, CARTPOLE)


def test_nobody_is_told_how_to_unpickle(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(zipfile.ZipFile))
    with pytest.raises(ValueError, match="no pickle of tensors and containers alone") as caught:
        load_policy(tmp_path / "a.pth", CARTPOLE)
    assert "weights_only" not in str(caught.value)


def test_what_is_no_policy_is_named(tmp_path):
    for given in (None, 3):
        with pytest.raises(ValueError, match=f"policy must be a name, .* module, got {given}"):
            load_policy(given, CARTPOLE)
    with pytest.raises(
        ValueError, match="network must be a policy over the 4 observations of Cart"
    ):
        save_policy(tmp_path / "a.safetensors", small_policy(3, 2), CARTPOLE)
    assert not list(tmp_path.iterdir())
    save_policy(tmp_path / "a.safetensors", small_policy(), CARTPOLE)
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a.json must be a card with network"):
        load_policy(tmp_path / "a.safetensors", CARTPOLE)
    (tmp_path / "a.json").unlink()
    with pytest.raises(ValueError, match=r"a.safetensors must have its card, .* beside it"):
        load_policy(tmp_path / "a.safetensors", CARTPOLE)
