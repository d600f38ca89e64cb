"""What is wrong with a file is said in one message, and nothing in it is executed."""

import hashlib
import io
import os
import pickle
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    ForeignAgent,
    NatureCNN,
    load_agent,
    save_agent,
)
from lightning_sobolev.atari.agents import reading
from lightning_sobolev.atari.agents.reading import read_weights
from tests.atari._foreign import CleanRLDQN, CleanRLPPO, seeded

TINY = {"action_net.weight": torch.arange(6.0), "action_net.bias": torch.ones(2)}


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


class Trap:
    """Leave a file behind when somebody unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_only_the_policy_of_a_zip_is_read(tmp_path):
    mark = tmp_path / "executed"
    trap = pickle.dumps(Trap(mark))
    members = {"data": trap, "pytorch_variables.pth": trap, "policy.pth": saved(TINY)}
    weights = read_weights(archive(tmp_path / "a.zip", members))
    assert_close(weights, TINY)
    assert not mark.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def pickled(content):
    return pickle.dumps(content, protocol=2)  # torch's own; it warns of others


@pytest.mark.parametrize("pack", [pickled, saved])
@pytest.mark.parametrize("ending", ["zip", "cleanrl_model", "safetensors"])
def test_a_policy_that_would_execute_something_is_refused(tmp_path, pack, ending):
    mark, path = tmp_path / "executed", tmp_path / f"a.{ending}"
    content = pack(Trap(mark))
    if ending == "zip":
        archive(path, {"policy.pth": content})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"must be a whole .* got one that is truncated, damaged"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../b", "..\\evil", "C:\\evil"])
def test_zip_with_a_path_outside_is_refused(tmp_path, name):
    path = archive(tmp_path / "a.zip", {"policy.pth": saved(TINY), name: b""})
    with pytest.raises(ValueError, match=r"must hold paths inside itself only, got the member"):
        read_weights(path)


def test_zip_without_a_policy_is_refused(tmp_path):
    path = archive(tmp_path / "a.zip", {"data": b"{}", "best/policy.pth": saved(TINY)})
    with pytest.raises(ValueError, match=r"must hold a policy\.pth, got the members \['best/pol"):
        load_agent(path)


def test_zip_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LARGEST", 1000)
    path = archive(tmp_path / "a.zip", {"policy.pth": bytes(1001)})
    with pytest.raises(ValueError, match=r"must have at most 1000 bytes, got 1001"):
        read_weights(path)


@pytest.mark.parametrize("ending", ["zip", "pth", "safetensors"])
def test_truncated_wherever_it_is_cut(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        archive(path, {"data": b"{}", "policy.pth": saved(TINY)})
    elif ending == "pth":
        path.write_bytes(saved(TINY))
    else:
        save_file(TINY, path)
    whole = path.read_bytes()
    assert_close(read_weights(path), TINY)
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"(got one that|: it) is truncated"):
            read_weights(path)


@pytest.mark.parametrize("ending", ["zip", "pt"])
def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        archive(path, {"policy.pth": saved(TINY)})
    else:
        path.write_bytes(saved(TINY))
    whole, refused = path.read_bytes(), []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            # what is no part of the weights (paddings, times) may be changed
            assert_close(read_weights(path), TINY, rtol=0, atol=0)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 10
    assert all(str(path) in message for message in refused)


def forged(path, size):
    """Let the directory of a zip say that its first member has another size."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


def most_memory(path, message):
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_weights(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_no_more_is_inflated_than_a_member_declares(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("policy.pth", bytes(50_000_000))
    forged(tmp_path / "a.zip", 1000)
    message = r"a\.zip must be a whole zip of stable-baselines3, got .*CRC"
    assert most_memory(tmp_path / "a.zip", message) < 5_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_members_of_a_torch_file_have_the_size_that_they_declare(tmp_path, compression):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", bytes(50_000))
    forged(path, 2**31)
    assert most_memory(path, r"a\.pt must be a whole state dict .*compressed") < 5_000_000


def test_old_formats_of_torch_are_read_or_refused_alike(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(TINY, path, _use_new_zipfile_serialization=False)
    assert_close(read_weights(path), TINY)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="must be a whole state dict saved by torch"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "got list"),
        ({"model_weights": TINY, "args": {}}, "got a dict with model_weights, args"),
    ],
)
def test_other_content_is_described(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(saved(content))
    with pytest.raises(ValueError, match=f"must be a state dict, names to tensors, {message}"):
        load_agent(tmp_path / "a.pt")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"source must be an existing file, got '.*none\.zip'"):
        load_agent(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"source must be an existing file"):
        read_weights(tmp_path)


def stored(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_another_network_is_refused(tmp_path):
    path = stored(tmp_path, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"must hold a Nature network .* got tensors \['weight'"):
        load_agent(path)


def test_a_layer_of_another_size_is_named(tmp_path):
    path = stored(tmp_path, seeded(CleanRLPPO, hidden=256))
    expected = r"network\.7\.weight in .* must have shape \[512, 3136\], got \[256, 3136\]"
    with pytest.raises(ValueError, match=expected):
        load_agent(path)


def test_another_number_of_actions_is_refused(tmp_path):
    path = stored(tmp_path, seeded(CleanRLDQN, num_actions=4))
    assert load_agent(path)[1]["num_actions"] == 4
    with pytest.raises(ValueError, match=r"must have num_actions=6 outputs, got 4"):
        load_agent(ForeignAgent(path, num_actions=6))


def test_distributional_heads_are_refused(tmp_path):
    weights = {**seeded(CleanRLDQN).state_dict(), "atoms": torch.ones(51)}
    torch.save(weights, tmp_path / "c51.pt")
    with pytest.raises(ValueError, match=r"nothing more, .* got further tensors \['atoms'\]"):
        load_agent(tmp_path / "c51.pt")


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("actor.bias", torch.full((6,), torch.nan), "be finite"),
        ("actor.bias", torch.ones(6, dtype=torch.complex64), r"real numbers, got torch\.complex64"),
        ("actor.bias", torch.ones(6, dtype=torch.int64), r"real numbers, got torch\.int64"),
        ("actor.bias", torch.ones(6).to_sparse(), r"dense array .* got .* torch\.sparse_coo"),
        ("actor.bias", torch.ones(6, device="meta"), r"dense array .* on meta"),
        ("actor.bias", torch.ones(1).expand(6), "hold all of its 6 numbers, got 4 bytes"),
        ("actor.weight", torch.ones(1, 1).expand(6, 512), "hold all of its 3072 numbers"),
    ],
)
def test_weights_that_are_not_dense_finite_numbers_are_refused(tmp_path, name, weight, message):
    torch.save({**seeded(CleanRLPPO).state_dict(), name: weight}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"{name} in .*a\.pt must .*{message}"):
        load_agent(tmp_path / "a.pt")


def test_a_policy_of_many_actions_that_are_not_there_takes_no_memory(tmp_path):
    network, many = seeded(CleanRLPPO).state_dict(), 2**40
    network |= {"actor.bias": torch.ones(1).expand(many)}
    network |= {"actor.weight": torch.ones(1, 1).expand(many, 512)}
    torch.save(network, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"must hold all of its {512 * many} numbers"):
        load_agent(tmp_path / "a.pt")


def test_own_names_without_a_card_are_a_state_dict(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(NatureCNN(6).state_dict(), path)
    assert load_agent(ForeignAgent(path))[1]["source"]["layout"] == "lightning_sobolev"
    with pytest.raises(ValueError, match="must be a card"):
        load_agent(path)


def test_digest_is_compared(tmp_path):
    path = stored(tmp_path, seeded(CleanRLPPO))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_agent(ForeignAgent(path, sha256=digest.upper()))[1]["source"]["sha256"] == digest
    with pytest.raises(ValueError, match=f"must have the sha256 0123, got {digest}"):
        load_agent(ForeignAgent(path, sha256="0123"))


def test_logits_have_no_temperature(tmp_path):
    path = stored(tmp_path, seeded(CleanRLPPO))
    with pytest.raises(ValueError, match=r"temperature must be None .* logits .*, got 1\.0"):
        load_agent(ForeignAgent(path, temperature=1.0))


@pytest.mark.parametrize("name", ["input_scale", "temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
        ForeignAgent("a.zip", **{name: value})


def test_what_the_card_says_is_not_said_twice(tmp_path, small_teacher):
    path = tmp_path / "a.safetensors"
    save_agent(path, small_teacher(), AtariSettings("pong"))
    with pytest.raises(ValueError, match=r"are said by its card, got 255\.0 and None"):
        load_agent(ForeignAgent(path, input_scale=255.0))
    with pytest.raises(ValueError, match=r"must have num_actions=4 outputs, got 6"):
        load_agent(ForeignAgent(path, num_actions=4))
