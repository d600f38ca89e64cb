"""The hub's own client, offline, on a cache that was filled by hand."""

import sys

import pytest
import torch
from huggingface_hub import constants
from torch.testing import assert_close

from lightning_sobolev._files import sha256_of
from lightning_sobolev.atari import AtariSettings, ForeignAgent, load_agent, save_agent
from tests.atari._foreign import CleanRLPPO, seeded

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return the folder in the cache that stands for a repository at a commit."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "models--people--pong"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_file_at_a_commit(repository):
    network, path = seeded(CleanRLPPO), repository / "runs" / "ppo.cleanrl_model"
    path.parent.mkdir()
    torch.save(network.state_dict(), path)
    source = f"hf://people/pong/runs/ppo.cleanrl_model@{COMMIT}"
    loaded, card = load_agent(source)
    assert card["source"]["file"] == source
    assert card["source"]["sha256"] == sha256_of(path)
    assert_close(loaded.head.weight, network.actor.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"none\.zip of people/pong at 0123.* could not be fetch"):
        load_agent(f"hf://people/pong/none.zip@{COMMIT}")


def test_agent_of_this_package_comes_with_its_card(repository, small_teacher):
    path = repository / "agent.safetensors"
    save_agent(path, small_teacher(), AtariSettings("pong"), about={"note": "shared"})
    assert load_agent(f"hf://people/pong/agent.safetensors@{COMMIT}")[1]["note"] == "shared"


def test_revision_that_may_move_needs_a_digest(repository):
    path = repository / "a.pt"
    torch.save(seeded(CleanRLPPO).state_dict(), path)
    with pytest.raises(ValueError, match=r"must be a commit .* or its sha256 .* got 'main'"):
        load_agent("hf://people/pong/a.pt@main")
    fixed = ForeignAgent("hf://people/pong/a.pt@main", sha256=sha256_of(path))
    assert load_agent(fixed)[1]["source"]["sha256"] == sha256_of(path)
    with pytest.raises(ValueError, match=r"@main must have the sha256 00, got"):
        load_agent(ForeignAgent("hf://people/pong/a.pt@main", sha256="00"))


@pytest.mark.parametrize("name", ["pong/a.zip", "a.zip@main", "pong/@main", "pong/a.zip@"])
def test_incomplete_id_is_refused(name):
    with pytest.raises(ValueError, match=r"source must look like hf://ORGANIZATION/"):
        ForeignAgent(f"hf://people/{name}")
    with pytest.raises(ValueError, match=r"FILE in .* must lie in the repository, got '\.\./a'"):
        ForeignAgent(f"hf://people/pong/../a@{COMMIT}")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'hub'"):
        load_agent(f"hf://people/pong/a.zip@{COMMIT}")
