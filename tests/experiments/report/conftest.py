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
    "data": {"fraction": 1.0, "root": "recordings"},
    "env": {"settings": {"game": "pong"}},
    "sobolev": {"weight": 0.3},
    "score": {"metric": "val/kl", "mode": "min"},
}
CHOICES = {"experiment": "distill_pong", "model": "small_cnn", "sobolev": "order1", "env": "pong"}


@pytest.fixture
def store(tmp_path):
    """Write a run: its command line's overrides, its numbers, and whatever else its config has."""

    def write(name, overrides, metrics, **config):
        folder = tmp_path / "runs" / name
        (folder / ".hydra").mkdir(parents=True)
        choices = dict(CHOICES)
        cfg = OmegaConf.merge(CONFIG, config)
        for override in overrides:
            key, _, value = override.lstrip("+").partition("=")
            if key in choices:
                choices[key] = value
            else:
                cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{key}={value}"]))
        hashed = {"config_hash": config_hash(cfg)}
        files = {
            "metrics.json": json.dumps({"seed": 0, **metrics, **hashed}),
            ".hydra/config.yaml": OmegaConf.to_yaml(cfg),
            ".hydra/overrides.yaml": yaml.safe_dump(list(overrides)),
            ".hydra/hydra.yaml": yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}}),
        }
        for path, text in files.items():
            (folder / path).write_text(text)
        return folder

    return write
