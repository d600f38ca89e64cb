"""The hub's own client, offline, on a cache that was filled by hand."""

import builtins

import pytest
import torch
from huggingface_hub import constants
from torch.testing import assert_close

from lightning_sobolev._files import sha256_of
from lightning_sobolev.atari import AtariSettings, ForeignAgent, load_agent, save_agent
from lightning_sobolev.atari.agents.hub import parse
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
    assert card["source"] == {
        "file": source,
        "sha256": sha256_of(path),
        "layout": "CleanRL PPO",
        "input_scale": 1.0,
        "temperature": None,
        "frames": card["source"]["frames"],
    }
    assert_close(loaded.head.weight, network.actor.weight, rtol=0, atol=0)


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


@pytest.mark.parametrize(
    "source",
    [
        "hf://people/pong/a.zip",
        "hf://people/a.zip@main",
        "hf://people/pong/@main",
        "hf://people/pong/a.zip@",
        "hf://people/pong@main",
    ],
)
def test_incomplete_id_is_refused(source):
    with pytest.raises(ValueError, match=r"source must look like hf://ORGANIZATION/"):
        ForeignAgent(source)


def test_path_out_of_the_repository_is_refused():
    with pytest.raises(ValueError, match=r"FILE in .* must lie in the repository, got '\.\./a'"):
        parse(f"hf://people/pong/../a@{COMMIT}")


@pytest.mark.usefixtures("repository")
def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"none\.zip of people/pong at 0123.* could not be fetch"):
        load_agent(f"hf://people/pong/none.zip@{COMMIT}")


def test_without_the_client_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'hub'"):
        load_agent(f"hf://people/pong/a.zip@{COMMIT}")
