"""Every file in conf/ composes, and everything it describes can be built."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from lightning_sobolev.atari import Environments, NatureCNN
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.train import build_trainer
from tests.policies._policies import sb3_model

CONF = config_folder()
# train_teacher.yaml, tune.yaml and benchmark.yaml, with their groups, have tests of their own.
ALL = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("**/*.yaml"))
FILES = [
    file
    for file in ALL
    if str(file) not in ("train_teacher", "benchmark", "tune")
    and str(file.parent) not in ("teacher_training", "tune", "study")
]
# Files that only make sense in one experiment; the others are tried in the cheapest one.
HOMES = {
    "teacher/agent": "distill_pong",
    "teacher/sb3": "distill_pong",
    "teacher/cleanrl": "distill_pong",
    "teacher/hub": "distill_pong",
    "teacher/module": "distill_pong",
    "env/pong": "distill_pong",
    "env/atari": "distill_atari",
    "env/breakout": "distill_breakout",
    "env/space_invaders": "distill_space_invaders",
    "data/recording": "distill_pong",
    "env/gymnasium": "distill_policy",
    "data/policy_recording": "distill_policy",
    "model/policy_mlp": "distill_policy",
    "teacher/policy_agent": "distill_policy",
    "teacher/policy_sb3": "distill_policy",
    "teacher/policy_module": "distill_policy",
    "data/stored": "distill_pong",
    "data/images": "synthetic_gradients",
    "data/atari_frames": "synthetic_gradients",
    "model/image_cnn": "synthetic_gradients",
    "model/image_resnet": "synthetic_gradients",
    "model/small_cnn": "distill_pong",
    "model/nature_cnn": "distill_pong",
    "data/signals": "band_limits",
    "model/pooled_cnn": "band_limits",
    "data/basket": "finance",
    "data/forces": "forces",
    "model/schnet": "forces",
    "teacher/forces": "forces",
    "teacher/morse": "forces",
    "data/pde": "pde",
    "teacher/classifier": "sensitivity",
}

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODULE = "teacher.agent.module"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return where teachers of other people are, the hub's cache being one that lies here."""
    folder = tmp_path_factory.mktemp("sources")
    file = folder / "models--people--pong" / "snapshots" / COMMIT / "weights.pt"
    file.parent.mkdir(parents=True)
    torch.save(NatureCNN(6).state_dict(), file)
    policy = folder / "policy.pt"
    torch.save(sb3_model("ppo").policy.state_dict(), policy)
    store_classifier(run := folder / "classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        yield {
            "teacher/classifier": [f"teacher.folder={run}"],
            "data/stored": ["data.folders=[pong]"],
            "teacher/sb3": [f"teacher.agent.source={file}"],
            "teacher/cleanrl": [f"teacher.agent.source={file}"],
            "teacher/hub": [f"teacher.agent.source='hf://people/pong/weights.pt@{COMMIT}'"],
            "teacher/policy_sb3": [f"teacher.agent.source={policy}"],
            "teacher/policy_module": [
                "teacher.agent._target_=lightning_sobolev.policies.PolicyMLP",
                "+teacher.agent.sizes=[4,8]",
                "+teacher.agent.num_outputs=2",
            ],
            "teacher/module": [
                f"{MODULE}._target_=lightning_sobolev.atari.NatureCNN",
                f"+{MODULE}.num_actions=6",
            ],
        }


def store_classifier(run: Path) -> None:
    cfg = composed(["+experiment=sensitivity"], run)
    (run / ".hydra").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
    weights = instantiate(cfg.module).state_dict()
    torch.save({"state_dict": weights}, run / "checkpoints" / "last.ckpt")


def overrides_for(file: Path, sources: dict[str, list[str]]) -> list[str]:
    group, name = str(file.parent), file.name
    if "atari" in (name, name.removeprefix("distill_")):  # no game is packaged for all of them
        return ["+experiment=distill_atari", "env.settings.game=pong"]
    if group == ".":
        return ["+experiment=regression"]
    home = name if group == "experiment" else HOMES.get(str(file), "regression")
    played = ["env.id=CartPole-v1"] if home == "distill_policy" else []
    if group == "experiment":
        return [f"+experiment={name}", *played]
    choice = [f"{group}={name}", f"+experiment={home}", *played]
    # The machine that runs the tests may have no GPU: what is left is checked all the same.
    on_cpu = ["trainer.accelerator=cpu", "trainer.devices=1"] if group == "trainer" else []
    return choice + on_cpu + sources.get(str(file), [])


def composed(overrides: list[str], run_dir: Path) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, f"run_dir={run_dir}", "progress=false"])


@pytest.mark.parametrize("file", FILES, ids=str)
def test_config_composes_and_builds(file, tmp_path, sources):
    cfg = composed(overrides_for(file, sources), tmp_path)
    assert isinstance(instantiate(cfg.data), LightningDataModule)
    assert isinstance(instantiate(cfg.module), LightningModule)
    assert isinstance(build_trainer(cfg), Trainer)


def test_without_derivatives_only_the_callback_is_gone(tmp_path):
    with_terms = composed(["+experiment=distill_pong"], tmp_path)
    without = composed(["+experiment=distill_pong", "sobolev=none"], tmp_path)
    assert with_terms.sobolev.callback is not None
    with_terms.sobolev.callback = None
    with_terms.sobolev.order = "0"  # says the same
    assert with_terms == without


def test_the_inner_precision_reaches_the_callback(tmp_path):
    cfg = composed(["+experiment=distill_pong", "sobolev.inner_precision=bf16-mixed"], tmp_path)
    assert cfg.sobolev.callback.inner_precision == "bf16-mixed"
    assert isinstance(build_trainer(cfg), Trainer)


def test_a_term_fades_within_its_share_of_whatever_steps_there_are(tmp_path):
    changed = ["sobolev.fade=0.25", "sobolev.every_n_steps=1"]
    cfg = composed(["+experiment=distill_breakout", "steps=40", *changed], tmp_path)
    (term,) = instantiate(cfg.sobolev.callback).spec.terms
    assert [term.weight_at(step) for step in (0, 10, 39)] == [cfg.sobolev.weight, 0.0, 0.0]
    assert 0.0 < term.weight_at(9) < cfg.sobolev.weight


@pytest.mark.parametrize("game", ["pong", "breakout", "space_invaders"])
def test_actions_are_those_of_the_game(game, tmp_path):
    cfg = composed([f"+experiment=distill_{game}"], tmp_path)
    environments = Environments(instantiate(cfg.env.settings), seed=0, num_threads=1)
    names = environments.action_meanings
    assert instantiate(cfg.model).policy.num_actions == len(names)
    assert instantiate(cfg.teacher).network.num_actions == len(names)
    merged = [{names[action] for action in group} for group in cfg.env.same_actions]
    pong = [{"NOOP", "FIRE"}, {"RIGHT", "RIGHTFIRE"}, {"LEFT", "LEFTFIRE"}]
    assert merged == {"pong": pong, "breakout": [{"NOOP", "FIRE"}], "space_invaders": []}[game]


@pytest.mark.parametrize("file", sorted((CONF / "sobolev").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_order_that_a_choice_states_is_that_of_its_terms(file, tmp_path):
    cfg = composed(["+experiment=regression", f"sobolev={file.stem}"], tmp_path)
    callback = instantiate(cfg.sobolev.callback)
    assert int(cfg.sobolev.order) == (0 if callback is None else callback.spec.max_order)
