"""Nothing in a file is executed, damage is noticed, and sizes that it claims cost nothing."""

import io
import os
import pickle
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from lightning_sobolev.atari.agents import reading
from lightning_sobolev.atari.agents.reading import read_weights

TINY = {"action_net.weight": torch.arange(6.0), "action_net.bias": torch.ones(2)}


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tiny(path):
    if path.suffix == ".zip":
        return archive(path, {"data": b"{}", "policy.pth": saved(TINY)})
    if path.suffix == ".safetensors":
        save_file(TINY, path)
    else:
        path.write_bytes(saved(TINY))
    return path


class Trap:
    """Leave a file behind when somebody unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(content):
    return pickle.dumps(content, protocol=2)  # torch's own; it warns of others


def test_only_the_policy_of_a_zip_is_read(tmp_path):
    trap = pickled(Trap(tmp_path / "executed"))
    members = {"data": trap, "pytorch_variables.pth": trap, "policy.pth": saved(TINY)}
    assert_close(read_weights(archive(tmp_path / "a.zip", members)), TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


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


@pytest.mark.parametrize("ending", ["zip", "pth", "safetensors"])
def test_truncated_wherever_it_is_cut(tmp_path, monkeypatch, ending):
    path = tiny(tmp_path / f"a.{ending}")
    whole = path.read_bytes()
    assert_close(read_weights(path), TINY)
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"must be a whole .* got one that is truncated"):
            read_weights(path)
    path.write_bytes(whole)
    monkeypatch.setattr(reading, "_LARGEST", 100)
    with pytest.raises(ValueError, match=r"must have at most 100 bytes, got \d{3}"):
        read_weights(path)


@pytest.mark.parametrize("ending", ["zip", "pt"])
def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path, ending):
    path = tiny(tmp_path / f"a.{ending}")
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


@pytest.mark.parametrize(
    ("ending", "compression", "size", "message"),
    [
        ("zip", zipfile.ZIP_DEFLATED, 1000, "whole zip of stable-baselines3, got .*CRC"),
        ("pt", zipfile.ZIP_DEFLATED, 2**31, "whole state dict .*compressed"),
        ("pt", zipfile.ZIP_STORED, 2**31, "whole state dict .*compressed"),
    ],
)
def test_a_forged_size_costs_no_memory(tmp_path, ending, compression, size, message):
    path = tmp_path / f"a.{ending}"
    length = 50_000_000 if compression == zipfile.ZIP_DEFLATED else 50_000
    content = bytearray(archive(path, {"policy.pth": bytes(length)}, compression).read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"a\.{ending} must be a {message}"):
        read_weights(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5_000_000


def test_old_formats_of_torch_are_read_or_refused_alike(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(TINY, path, _use_new_zipfile_serialization=False)
    assert_close(read_weights(path), TINY)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="must be a whole state dict saved by torch"):
        read_weights(path)


def test_other_content_is_described(tmp_path):
    (tmp_path / "a.pt").write_bytes(saved([torch.ones(1)]))
    with pytest.raises(ValueError, match="must be a state dict, names to tensors, got list"):
        read_weights(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(saved({"model_weights": TINY, "args": {}}))
    with pytest.raises(ValueError, match="got a dict with model_weights, args"):
        read_weights(tmp_path / "a.pt")
    path = archive(tmp_path / "a.zip", {"data": b"{}", "best/policy.pth": saved(TINY)})
    with pytest.raises(
        ValueError, match=r"whole zip of stable-baselines3, .*no item named 'policy\.pth'"
    ):
        read_weights(path)
    with pytest.raises(ValueError, match=r"source must be an existing file, got '.*none\.zip'"):
        read_weights(tmp_path / "none.zip")
