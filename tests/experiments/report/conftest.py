"""Folders of finished runs as the scripts leave them, written by hand."""

import json

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_sobolev.experiments.run.conf import config_hash

CONFIG = {
    "name": "distill_pong",
    "seed": 0,
    "lr": 2e-3,
    "steps": "${sizes.${scale.name}.steps}",
    "scale": {"name": "full"},
    "sizes": {"full": {"steps": 2000}},
    "run_dir": "${hydra:runtime.output_dir}",
    "pictures": True,
    "data": {"fraction": 1.0},
    "env": {"settings": {"game": "pong"}},
    "sobolev": {"weight": 0.3},
    "score": {"metric": "val/kl", "mode": "min"},
}
CHOICES = {"experiment": "distill_pong", "model": "small_cnn", "sobolev": "order1", "env": "pong"}


@pytest.fixture
def store(tmp_path):
    """Write a run: its command line's overrides, its numbers, and whatever else its config has."""

    def write(name, overrides, metrics, **config):
        given = dict(override.lstrip("+").split("=", 1) for override in overrides)
        choices = CHOICES | {key: given.pop(key) for key in CHOICES if key in given}
        values = OmegaConf.from_dotlist([f"{key}={value}" for key, value in given.items()])
        cfg = OmegaConf.merge(CONFIG, config, values)
        hydra = tmp_path / "runs" / name / ".hydra"
        hydra.mkdir(parents=True)
        numbers = {"seed": 0, **metrics, "config_hash": config_hash(cfg)}
        (hydra.parent / "metrics.json").write_text(json.dumps(numbers))
        OmegaConf.save(cfg, hydra / "config.yaml")
        (hydra / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
        (hydra / "hydra.yaml").write_text(
            yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}})
        )
        return hydra.parent

    return write
